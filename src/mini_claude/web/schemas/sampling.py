"""The bounds of every sampling parameter, once for all APIs.

Numbers are finite and strictly typed ("0.7" is not a number, true is not 1), so that a bad value is refused
here, by name, and never reaches an engine.
"""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mini_claude.types import SamplingParams

MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 64
MAX_LOGPROBS = 20
MAX_BIASED_TOKENS = 1024


class WireModel(BaseModel):
    """Base of everything that clients send: unknown fields are refused by name, nothing is coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


MaxTokens = Annotated[int, Field(ge=1, le=10_000_000)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]
LogitBias = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(max_length=MAX_BIASED_TOKENS),
]
Id = Annotated[str, Field(min_length=1, max_length=128)]  # of a session, turn or reply; only ever compared
ModelName = Annotated[str, Field(min_length=1, max_length=256)]


def bias_of(bias: LogitBias | None) -> dict[int, float]:
    """JSON has only string keys; inside, token ids are integers."""
    return {int(token_id): value for token_id, value in (bias or {}).items()}


class SamplingFields(WireModel):
    """Sampling parameters of the native API and the WebSocket, with its defaults."""

    max_tokens: MaxTokens = Field(512, description="The most tokens that the answer may have.")
    temperature: Temperature = Field(0.7, description="0 always takes the most probable token.")
    top_p: TopP = Field(1.0, description="Only the most probable tokens that together have this probability.")
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = Field(0, description="Only the k most probable; 0: all.")
    min_p: TopP = Field(0.0, description="Only tokens at least this fraction as probable as the best one.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = Field(
        1.0, description="Above 1 makes tokens that were seen less probable (Keskar et al. 2019)."
    )
    presence_penalty: Penalty = Field(0.0, description="Subtracted once from tokens already generated.")
    frequency_penalty: Penalty = Field(0.0, description="Subtracted for every time a token was generated.")
    logit_bias: LogitBias = Field({}, description="Token id (as a string) to a value added to its logit.")
    seed: Seed | None = Field(None, description="The same seed and request give the same text.")
    stop: Stop | None = Field(None, description="Up to 4 strings that end the answer and are not part of it.")
    logprobs: NumLogprobs | None = Field(None, description="Also return the k most probable tokens at each step.")

    def sampling_params(self) -> SamplingParams:
        """The plain value."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=bias_of(self.logit_bias),
            seed=self.seed,
            stop=tuple(self.stop or ()),
            logprobs=self.logprobs,
        )
