"""Messages to a stream of parts: what is asked, how ids are chosen, and the engine that does it."""

from m27.infer.engine import Engine
from m27.infer.request import Event, Request, RequestError, Response, Sampling, Usage

__all__ = ["Engine", "Event", "Request", "RequestError", "Response", "Sampling", "Usage"]
