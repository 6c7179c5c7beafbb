"""The native API's requests and answers about models; a model itself is shown as `ModelInfo`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mini_claude.data.records import DefaultChoice
from mini_claude.types import DTypeName, ModelInfo, Quantization
from mini_claude.web.schemas.sampling import ModelName, WireModel


class ModelList(BaseModel):
    """The catalog with the state of each model; `default` is what requests without a model get."""

    default: str
    models: list[ModelInfo]


class ModelLoad(WireModel):
    """Body of POST /api/v1/models/load. What is null is as the settings say.

    With none of dtype, device and quantization, a copy that is loaded already will do, however it was loaded.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "smollm2-135m", "dtype": "float32"}]})

    model: ModelName | None = Field(None, description="null: the default model.")
    dtype: DTypeName | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] | None = None
    quantization: Quantization | None = None

    def overrides(self) -> dict[str, object]:
        """The load options that were given."""
        given = {"dtype": self.dtype, "device": self.device, "quantization": self.quantization}
        return {name: value for name, value in given.items() if value is not None}


class ModelUnload(WireModel):
    """Body of POST /api/v1/models/unload."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "smollm2-135m"}]})

    model: ModelName


class DefaultModelChange(WireModel):
    """Body of PUT /api/v1/default-model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "smollm2-135m:support-bot@2"}]})

    model: ModelName


class DefaultModelPublic(BaseModel):
    """What answers where no model is named; `history` newest first, empty while the setting default_model holds."""

    model: str
    history: list[DefaultChoice]
