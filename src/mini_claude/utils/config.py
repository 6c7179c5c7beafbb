"""All settings, from one place: defaults, then a TOML file, then MINI_CLAUDE_* in the environment.

No other file reads the environment. `mini-claude config` prints this table with the effective values.
"""

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mini_claude.errors import InvalidRequest
from mini_claude.types import DTypeName, EngineKind, LoadOptions, Quantization, ServedGGUF

CONFIG_FILE_VARIABLE = "MINI_CLAUDE_CONFIG"
NO_KEY_SENTENCE = (  # what `serve` says before it starts, and a server that was started without it to strangers
    "No API key exists, so only this machine is served: create one with `mini-claude keys create NAME`, or a user with "
    "`mini-claude users create NAME`, "
    "or set allow_unauthenticated_network (`mini-claude serve --allow-unauthenticated-network`)."
)
ListOfNames = Annotated[tuple[str, ...], NoDecode]  # "a,b" in the environment, a list in TOML


class Settings(BaseSettings):
    """Every setting with its default and what it does."""

    model_config = SettingsConfigDict(env_prefix="MINI_CLAUDE_", extra="forbid", frozen=True)

    # where things are
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("mini-claude"),
        description="Everything that must survive lives here: database, models, logs, sockets.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="postgresql://user:password@host/name, which several hosts may share. Unset: an SQLite file in "
        "data_dir. sqlite:// keeps sessions in memory (one worker only).",
    )

    # the server
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=64, description="API worker processes.")
    allow_unauthenticated_network: bool = Field(
        False,
        description="Serve other machines without any API key. Only for networks where you trust everyone.",
    )
    allowed_hosts: ListOfNames = Field(
        (), description="Further Host names under which this server may be called, besides its own address."
    )
    allowed_origins: ListOfNames = Field(
        (),
        description="Web origins (scheme://host:port) that may call from a browser, besides the server's own.",
    )
    trusted_proxies: ListOfNames = Field(
        ("127.0.0.1", "::1"),
        description="Addresses and networks of reverse proxies, whose X-Forwarded-For and -Proto are believed.",
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest request body, and WebSocket message.")
    max_connections: int = Field(
        2000, ge=16, le=100_000, description="Connections of one API worker, WebSockets included; more get 503."
    )
    shutdown_seconds: float = Field(20.0, ge=0, le=600, description="How long running replies may go on at SIGTERM.")
    drain_seconds: float = Field(
        0.0,
        ge=0,
        le=600,
        description="At SIGTERM: how long requests are still taken while /api/v1/health says 503, so that a load "
        "balancer can look. shutdown_seconds begins after it; a second SIGTERM ends it.",
    )
    linger_seconds: float = Field(
        3.0,
        ge=0,
        le=86_400,
        description="How long models stay loaded without any API worker, for one that restarts.",
    )
    page: bool = Field(
        True, description="Serve the web page at /, in a process of its own. Needs a database that is not in memory."
    )
    ping_seconds: float = Field(15.0, ge=0.05, le=300, description="Silence in a stream before a comment ping.")
    resume_seconds: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="How long a WebSocket reply goes on, and can be resumed, with nobody listening.",
    )

    api_key: SecretStr | None = Field(None, description="The key that terminal commands send to the server.")
    token_seconds: float = Field(
        28_800.0, ge=60, le=2_592_000, description="How long who signed in with a password stays signed in."
    )
    session_retention_days: float = Field(
        0.0, ge=0, description="Delete conversations that nobody touched for so many days; 0 keeps them."
    )

    # models
    default_model: str = Field("smollm2-135m", description="The model behind the alias `default`.")
    preload: bool = Field(True, description="Load the default model when the server starts.")
    idle_unload_seconds: float = Field(
        0.0, ge=0, description="Unload a model after this long without a request; 0 keeps it."
    )
    load_timeout_seconds: float = Field(600.0, ge=1, description="How long a load may take before it counts as failed.")
    hub_owners: ListOfNames = Field(
        ("HuggingFaceTB", "microsoft", "Qwen", "google", "meta-llama", "mistralai"),
        description="Hub accounts from which `mini-claude models pull` may download.",
    )

    # what users may do with models, which admins always may; * stands for any characters, an adapter follows its base
    users_may_use: ListOfNames = Field(
        ("*",), description="Models that users may chat with; others are in no list of theirs."
    )
    users_may_load: ListOfNames = Field(
        ("*",), description="Models that users' requests bring into memory; others only answer while they are there."
    )
    users_may_train: ListOfNames = Field(("*",), description="Models that users may train, if they may use them.")

    # engine
    engine: EngineKind = Field(
        "auto",
        description="Engine of models: auto is llama_cpp for GGUF files on a CPU, else torch; echo is for tests.",
    )
    gguf_type: ServedGGUF = Field(
        "auto",
        description="What llama_cpp makes of a GGUF file's weights before it serves them. as_is: nothing; mixed: q8_0 "
        "with attention in f16; auto: q8_0 for small models in types that are slow, else as_is.",
    )
    native_llama_cpp: bool = Field(
        True, description="Use the llama.cpp that `mini-claude compile` made for this processor, where it did."
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    dtype: DTypeName = Field("auto", description="auto: float32 on a CPU, bfloat16 on a GPU.")
    quantization: Quantization | None = Field(None, description="int8 or nf4 (bitsandbytes); unset: none.")
    kv_cache_tokens: int = Field(
        8192, ge=256, description="Tokens of KV cache, running and reusable; llama.cpp may take thrice their memory."
    )
    max_num_seqs: int = Field(32, ge=1, le=1024, description="Sequences decoded in one batch.")
    max_num_batched_tokens: int = Field(512, ge=16, description="Tokens of one engine step, prefill included.")
    max_waiting: int = Field(256, ge=0, description="Requests that may queue at one engine; more get 503.")
    max_reply_seconds: float = Field(
        3600.0, ge=0, le=86_400, description="Longest that one reply may take from its first token on; 0: no limit."
    )
    num_threads: int = Field(
        0, ge=0, description="CPU threads of an engine; 0: the physical cores, as far as others leave them."
    )

    # limits of each user and API key that has none of its own, and of the local caller
    limit_requests_per_minute: int = Field(0, ge=0, description="Requests for replies a minute; 0: no limit.")
    limit_requests_per_day: int = Field(0, ge=0, description="Requests for replies in 24 hours; 0: no limit.")
    limit_tokens_per_minute: int = Field(
        0, ge=0, description="Tokens a minute, of prompts and replies together; 0: no limit."
    )
    limit_tokens_per_day: int = Field(
        0, ge=0, description="Tokens in 24 hours, of prompts and replies together; 0: no limit."
    )
    limit_concurrent_replies: int = Field(0, ge=0, description="Replies that are written at once; 0: no limit.")
    limits_url: SecretStr | None = Field(
        None,
        description="redis://... where several hosts share counts of requests and tokens. Unset: a file in data_dir.",
    )

    # training
    max_dataset_bytes: int = Field(200_000_000, ge=1024, description="Largest file of training data.")
    dataset_quota_bytes: int = Field(2_000_000_000, ge=1024, description="All datasets together.")
    max_adapter_bytes: int = Field(2_000_000_000, ge=1024, description="Largest adapter that may be imported.")
    adapter_quota_bytes: int = Field(20_000_000_000, ge=1024, description="All imported adapters together.")
    max_training_hours: float = Field(
        0.0, ge=0, description="After so many hours of steps a job ends, with what was learned until then; 0: no limit."
    )
    max_training_gb: float = Field(
        0.0, ge=0, description="Main memory, in GB, that a job's training may take on Linux; 0: no limit."
    )
    max_running_jobs: int = Field(1, ge=1, le=64, description="Training jobs that run at once; more wait.")

    # logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: readable on a terminal, JSON elsewhere."
    )
    log_file_bytes: int = Field(10_000_000, ge=10_000, description="Size at which a log file is rotated.")
    log_file_count: int = Field(5, ge=1, le=100, description="Rotated log files that are kept.")

    @field_validator(
        *("allowed_hosts", "allowed_origins", "trusted_proxies", "hub_owners"),
        *("users_may_use", "users_may_load", "users_may_train"),
        mode="before",
    )
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:  # "*" would let everybody say that he is on this machine
            if ip_network(each).prefixlen == 0:
                raise ValueError(f"{each} is everybody; name the proxy's own address or network")
        return value

    @field_validator("data_dir")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        return value.expanduser()  # no shell does it for a line of the TOML file

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the TOML file, the file over defaults.

        Raises `InvalidRequest` for a file that cannot be read.
        """
        del dotenv_settings, file_secret_settings
        file = config_file()
        if os.environ.get(CONFIG_FILE_VARIABLE) and not file.is_file():
            raise InvalidRequest(f"{CONFIG_FILE_VARIABLE} names the settings file {file}, which does not exist.")
        try:
            toml = TomlConfigSettingsSource(settings_cls, file)
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"The settings file {file} cannot be read: {error}.") from error
        return init_settings, env_settings, toml

    @property
    def effective_database_url(self) -> str:
        """The URL to connect to, with the default filled in."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir / 'mini-claude.db'}"

    @property
    def plain_limits_url(self) -> str | None:
        """The address of counters that several hosts share, as it is."""
        return None if self.limits_url is None else self.limits_url.get_secret_value()

    @property
    def database_in_memory(self) -> bool:
        """Whether sessions are in the memory of one process."""
        return self.effective_database_url in {"sqlite://", "sqlite:///:memory:"}

    @property
    def serves_page(self) -> bool:
        """Whether there is a page: its process could not see sessions in a worker's memory."""
        return self.page and not self.database_in_memory

    @property
    def page_files_dir(self) -> Path:
        """What the page's visitors upload and download, for a day at most."""
        return self.data_dir / "page"

    @property
    def models_dir(self) -> Path:
        """One folder for each materialised model."""
        return self.data_dir / "models"

    @property
    def datasets_dir(self) -> Path:
        """One folder for each dataset, named by its content's hash."""
        return self.data_dir / "datasets"

    @property
    def jobs_dir(self) -> Path:
        """One folder for each training job: checkpoints, metrics, output."""
        return self.data_dir / "jobs"

    @property
    def adapters_dir(self) -> Path:
        """One folder for each version of an adapter, named by its row."""
        return self.data_dir / "adapters"

    @property
    def logs_dir(self) -> Path:
        """Log files of all processes."""
        return self.data_dir / "logs"

    def load_options(self) -> LoadOptions:
        """The engine settings as the value that travels to the supervisor."""
        return LoadOptions(
            engine=self.engine,
            dtype=self.dtype,
            device=self.device,
            quantization=self.quantization,
            gguf_type=self.gguf_type,
            native_llama_cpp=self.native_llama_cpp,
            kv_cache_tokens=self.kv_cache_tokens,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_waiting=self.max_waiting,
            num_threads=self.num_threads,
        )


def config_file() -> Path:
    """The settings file, which need not exist."""
    return Path(os.environ.get(CONFIG_FILE_VARIABLE) or "mini-claude.toml")


def settings_problem(error: ValidationError) -> str:
    """Which settings are wrong, and what each means, in one line."""
    return "A setting is wrong. " + " ".join(_problem(item["loc"], item["msg"]) for item in error.errors())


def _problem(location: tuple[int | str, ...], message: str) -> str:
    name = str(location[0]) if location else ""
    field = Settings.model_fields.get(name)
    meaning = f"; it means: {field.description}" if field is not None else ": there is no such setting."
    return f"{name} (MINI_CLAUDE_{name.upper()} or mini-claude.toml): {message}{meaning}"
