from adaptsft.controllers import auto, feedback, schedules  # noqa: F401 (they fill the registry)
from adaptsft.controllers.base import REGISTRY, Controller, Moment, State, parameters, register
from adaptsft.controllers.steering import Steering, build
from adaptsft.controllers.validation import acts_through, describe, validate

__all__ = [
    "REGISTRY", "Controller", "Moment", "State", "Steering",
    "acts_through", "build", "describe", "parameters", "register", "validate",
]  # fmt: skip
