"""`python -m m27.eval.plugins …`: the command `lm_eval …` with the model `m27` known to it.

lm-evaluation-harness has no entry points for models, so that somebody has to import ours before it looks for one.
"""

from lm_eval.__main__ import cli_evaluate

import m27.eval.plugins.lm_model  # noqa: F401 - importing it registers it

if __name__ == "__main__":
    cli_evaluate()
