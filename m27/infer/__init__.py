"""Messages to a stream of parts: what is asked, how ids are chosen, and the engine that does it.

Requests can be formed and checked without torch: `request` is plain data, `engine` is not.
"""
