"""The ranges of values in params.yaml, as types of fields and of keyword-only arguments.

A range decides which values are accepted, and no result: changing one runs no stage again.
"""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

_MOST = 10**9  # larger numbers overflow somewhere

PositiveInt = Annotated[int, Field(ge=1, le=_MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
AtLeastTwo = Annotated[int, Field(ge=2, le=_MOST)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Side = Annotated[int, Field(ge=1, le=8192)]  # of an image in px
ViewSide = Annotated[int, Field(ge=4, le=8192)]  # px: smaller ones do not fit filters
Width = Annotated[int, Field(ge=1, le=512)]  # channels of the first stage of a network
Units = Annotated[int, Field(ge=1, le=65_536)]  # of a layer
Kernel = Annotated[int, Field(ge=1, le=223)]  # px of views of 224 px
Few = Annotated[int, Field(ge=1, le=64)]  # views, masks or layers, each computed in every step
HardNegatives = Annotated[
    int,
    Field(ge=1, le=64, description="a whole number from 1 to 64; for 0 write hard_negative: null"),
]
TwoOrMore = Annotated[int, Field(ge=2, le=64)]
FewOrNone = Annotated[int, Field(ge=0, le=64)]
Queue = Annotated[int, Field(ge=1, le=2**24)]  # keys of a framework's queue
Percent = Annotated[int, Field(ge=1, le=100)]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]  # of SGD; 1 would never forget a gradient

Name = Annotated[str, Field(min_length=1, description="a text that is not empty")]

T = TypeVar("T")
Several = Annotated[tuple[T, ...], Field(min_length=1)]
_Hue = Annotated[float, Field(ge=0, le=0.5)]  # turns of the colour circle
Jitter = Annotated[
    tuple[NonNegative, NonNegative, NonNegative, _Hue],
    Field(
        description="[brightness, contrast, saturation, hue], four numbers of at least 0, the hue "
        "at most 0.5"
    ),
]
Sha256 = Annotated[
    str, Field(pattern="^[0-9a-fA-F]{64}$", description="the sha256 of a file: 64 hex digits")
]


def _check_order(value: Any) -> Any:
    if isinstance(value, tuple) and value[0] > value[1]:
        raise ValueError("the first number is the larger one")
    return value


def _check_growing(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("each number must be larger than the one before")
    return values


_ORDERED, _GROWING = AfterValidator(_check_order), AfterValidator(_check_growing)
_Area = Annotated[float, Field(gt=0, le=1)]
PositiveRange = Annotated[
    tuple[Positive, Positive], _ORDERED, Field(description="[low, high], two numbers above 0")
]
ShareRange = Annotated[
    tuple[Share, Share], _ORDERED, Field(description="[low, high], two numbers from 0 to 1")
]
AreaRange = Annotated[
    tuple[_Area, _Area], _ORDERED, Field(description="[low, high], two numbers above 0 up to 1")
]
ShareOrRange = Annotated[
    Share | tuple[Share, Share],
    _ORDERED,
    Field(description="a number from 0 to 1, or [low, high]"),
]
SharePerView = Annotated[
    Share | tuple[Share, Share], Field(description="a number from 0 to 1, or [query, key]")
]
Milestones = Annotated[tuple[PositiveInt, ...], _GROWING]  # epochs or iterations
Levels = Annotated[tuple[Side, ...], Field(min_length=1), _GROWING]  # sides in px
