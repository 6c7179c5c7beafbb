"""The form of a training job. Its settings are built from the fields of the API, which have the bounds and the help."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import gradio as gr
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from mini_claude.data.records import Dataset
from mini_claude.services.identity import Caller
from mini_claude.services.services import Services
from mini_claude.training.arguments import LoraSettings, TrainingArguments
from mini_claude.web.page.labels import GROUPS
from mini_claude.web.page.presets import DEFAULT, PRESETS
from mini_claude.web.schemas.training import LoraFields, TrainingFields

OF_THE_DATA: Final = ("objective", "drop_broken_rows")  # no preset decides these
_FIELDS: Final[Mapping[str, FieldInfo]] = {**LoraFields.model_fields, **TrainingFields.model_fields}
Update = dict[gr.blocks.Block, Any]


class TrainingForm:
    """The components; what happens on the buttons' events is the tab's affair.

    `inputs` are in an event's arguments: dataset, model, adapter's name and the settings by name.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.dataset = gr.Dropdown([], label="Dataset", elem_id="train-dataset", info="Bring data in under Data.")
        self.note = gr.HTML("", elem_id="train-note")
        self._by_name: dict[str, gr.components.Component] = {}
        self._by_name["drop_broken_rows"] = gr.Checkbox(
            label="Leave broken rows out", visible=False, elem_id="train-drop-broken"
        )
        self.preset = gr.Radio(list(PRESETS), value=DEFAULT, label="How", elem_id="train-preset", info=_preset_info())
        with gr.Row():
            self.model = gr.Dropdown([], label="Model", min_width=200, elem_id="train-model", info="It stays as it is.")
            self.adapter = gr.Textbox(
                label="Name of the result",
                max_length=64,
                min_width=200,
                elem_id="train-name",
                info="Left empty: like the dataset.",
            )
        with gr.Accordion("All settings", open=False, elem_id="train-settings"):
            for title, labels in GROUPS.items():
                gr.Markdown(f"#### {title}")
                with gr.Row():
                    for name, label in labels.items():
                        self._by_name[name] = _component(name, label)
        with gr.Row():
            self.start = gr.Button("Start training", variant="primary", min_width=140, elem_id="train-start")
            self.estimate = gr.Button("Estimate time and memory", min_width=140, elem_id="train-estimate")
        self.estimated = gr.HTML("", elem_id="train-estimated")
        self.demo = gr.Button("Train the demo", elem_id="train-demo")
        gr.HTML('<p class="facts">64 rows that teach the model who it is: two or three minutes on two cores.</p>')
        self.inputs: list[gr.components.Component] = [self.dataset, self.model, self.adapter, *self._by_name.values()]
        self.preset.input(self.apply_preset, self.preset, list(self._by_name.values()), api_visibility="private")

    def settings(self, values: Sequence[Any]) -> tuple[LoraSettings, TrainingArguments]:
        """From the settings' values. Raises pydantic's `ValidationError` with the bounds of the API."""
        given = {name: _given(name, value) for name, value in zip(self._by_name, values, strict=True)}
        lora = {name: value for name, value in given.items() if name in LoraFields.model_fields}
        training = {name: value for name, value in given.items() if name in TrainingFields.model_fields}
        return LoraFields.model_validate(lora).settings(), TrainingFields.model_validate(training).arguments()

    def apply_preset(self, preset: str) -> list[Any]:
        """New values for all settings but what the data decides."""
        values = preset_values(preset)
        return [gr.skip() if name in OF_THE_DATA else values[name] for name in self._by_name]

    async def choices(
        self, caller: Caller, datasets: Sequence[Dataset], chosen: str | None, model: str | None
    ) -> Update:
        """What the caller can choose now; `chosen` is the dataset, and `model` None the default one's base."""
        names = [dataset.name for dataset in datasets]
        model = model or (await self._services.models.resolve(None)).name
        models = await self._services.models.trainable_names(caller)
        dataset = next((each for each in datasets if each.name == chosen), None)
        return {
            self.dataset: gr.Dropdown(names, value=None if dataset is None else dataset.name),
            self.model: gr.Dropdown(list(models), value=model if model in models else next(iter(models), None)),
            **self.fit(dataset),
        }

    def fit(self, dataset: Dataset | None) -> Update:
        """What follows from the dataset: the objective, and whether there are broken rows to decide about."""
        broken = 0 if dataset is None else dataset.num_broken
        objective = "dpo" if dataset is not None and dataset.format == "preference" else "sft"
        return {
            self.note: note_html(dataset),
            self._by_name["drop_broken_rows"]: gr.Checkbox(visible=True)
            if broken
            else gr.Checkbox(False, visible=False),
            self._by_name["objective"]: objective,
        }

    @property
    def fitted(self) -> list[gr.blocks.Block]:
        """What `choices` and `fit` change."""
        fitted = [self._by_name[name] for name in OF_THE_DATA]
        return [self.dataset, self.model, self.note, *fitted]


def note_html(dataset: Dataset | None) -> str:
    """What one should know of a dataset before training on it."""
    if dataset is None:
        return ""
    parts = [f"{dataset.num_rows:,} rows."]
    if dataset.num_broken:
        parts.append(f"{dataset.num_broken:,} of them cannot be used: mend them, or leave them out.")
    if dataset.format == "preference":
        parts.append("They hold a better and a worse answer each, so the model learns which is better (DPO).")
    return f'<p class="facts">{" ".join(parts)}</p>'


def preset_values(preset: str) -> dict[str, Any]:
    """The form's values of a preset, by the settings' names."""
    chosen = PRESETS[preset]
    lora = LoraFields(**chosen.lora).model_dump()
    training = TrainingFields(**chosen.training).model_dump()
    return {name: _shown(value) for name, value in (lora | training).items()}


def _preset_info() -> str:
    return " ".join(f"{name}: {preset.info}." for name, preset in PRESETS.items())


def _component(name: str, label: str) -> gr.components.Component:
    field = _FIELDS[name]
    info = field.description or ""
    common: dict[str, Any] = {"label": label, "min_width": 200, "elem_id": f"train-{name}"}
    value = preset_values(DEFAULT)[name]
    choices = [choice for part in (field.annotation, *get_args(field.annotation)) for choice in _literals(part)]
    if choices:
        optional = [("none", "")] if field.default is None else []
        return gr.Dropdown([*optional, *((each, each) for each in choices)], value=value, info=info, **common)
    if field.annotation is bool:
        return gr.Checkbox(value, info=info, **common)
    if isinstance(value, str):
        return gr.Textbox(value, info=info, **common)
    precision = 0 if field.annotation is int else None
    return gr.Number(value, precision=precision, info=f"{info} {bounds_of(field)}".strip(), **common)


def _literals(annotation: Any) -> Sequence[str]:
    return [each for each in get_args(annotation) if isinstance(each, str)]


def bounds_of(field: FieldInfo) -> str:
    """What is allowed, as a sentence."""
    bounds = []
    for constraint in field.metadata:
        match constraint:
            case Ge(ge=value):
                bounds.append(f"from {value:,}")
            case Gt(gt=value):
                bounds.append(f"above {value:,}")
            case Le(le=value):
                bounds.append(f"to {value:,}")
            case Lt(lt=value):
                bounds.append(f"below {value:,}")
    return f"({' '.join(bounds)})" if bounds else ""


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else value


def _given(name: str, value: Any) -> Any:
    if name == "target_modules":
        return [part.strip() for part in str(value).split(",") if part.strip()]
    return None if value == "" else value
