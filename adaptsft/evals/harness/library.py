"""lm-eval, which is optional: an error that names the fix where it is not installed."""

import logging

from adaptsft.errors import ConfigError

try:
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ConfigError(
        f"tasks of lm-eval need {error.name}: pip install 'adaptsft[harness]'"
    ) from None

__all__ = ["LM", "Instance", "TaskManager", "lm_eval"]

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its notes would hide the progress line
