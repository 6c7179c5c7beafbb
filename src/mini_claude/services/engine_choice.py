"""Which engine answers for a model, asked before something is kept that only one of them can run."""

from mini_claude.runtime.runtime import Runtime
from mini_claude.types import ModelSpec
from mini_claude.utils.config import Settings
from mini_claude.utils.model_utils import has_gpu_driver, prefers_llama_cpp


class EngineChoice:
    """What runs now, and where a model does not run, what the settings would start."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._settings = settings

    async def is_llama_cpp(self, spec: ModelSpec) -> bool:
        """Whether that is the engine that runs the model, or to which the settings and its source lead."""
        running = [info.engine for info in (await self._runtime.status()).models if info.name == spec.name]
        if running and running[0] is not None:
            return running[0] == "llama_cpp"
        from_gguf = any(source.kind in ("package", "gguf") for source in spec.sources)
        return from_gguf and prefers_llama_cpp(self._settings.load_options(), gpu=has_gpu_driver())
