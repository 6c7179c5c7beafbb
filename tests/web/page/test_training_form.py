"""The form of a job: complete, with the API's help and bounds, and what it makes of its values."""

from dataclasses import asdict
from typing import Any

import gradio as gr
import pytest
from pydantic import ValidationError

from mini_claude.data.records import Dataset
from mini_claude.training.arguments import LoraSettings, TrainingArguments
from mini_claude.training.examples import DatasetFormat
from mini_claude.web.page.labels import GROUPS
from mini_claude.web.page.presets import DEFAULT, PRESETS
from mini_claude.web.page.training_form import OF_THE_DATA, TrainingForm, bounds_of, note_html, preset_values
from mini_claude.web.schemas.training import LoraFields, TrainingFields

from ..conftest import Site

FIELDS = {**LoraFields.model_fields, **TrainingFields.model_fields}


def dataset(data_format: DatasetFormat = "messages", num_broken: int = 0) -> Dataset:
    return Dataset("d", "o", "0" * 64, "d.jsonl", "jsonl", data_format, 10, 40, num_broken, (), 0.0)


@pytest.fixture
async def form(site: Site) -> TrainingForm:
    with gr.Blocks():
        return TrainingForm(site.services)


def values(form: TrainingForm, **changes: Any) -> list[Any]:
    by_name = preset_values(DEFAULT) | changes
    names = ["drop_broken_rows", *(name for labels in GROUPS.values() for name in labels)]
    return [by_name[name] for name in names]


def test_every_argument_is_in_the_form_once_and_has_help() -> None:
    names = ["drop_broken_rows", *(name for labels in GROUPS.values() for name in labels)]
    assert sorted(names) == sorted(FIELDS)
    assert [name for name, field in FIELDS.items() if not field.description] == []


def test_bounds_are_told() -> None:
    assert bounds_of(FIELDS["r"]) == "(from 1 to 256)"
    assert bounds_of(FIELDS["learning_rate"]) == "(above 0 to 1)"
    assert bounds_of(FIELDS["warmup_ratio"]) == "(from 0 below 1)"
    assert bounds_of(FIELDS["use_dora"]) == ""


async def test_the_form_as_it_is_first_shown_means_the_defaults(form: TrainingForm) -> None:
    assert form.settings(values(form)) == (LoraSettings(), TrainingArguments())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_job_that_the_api_takes(preset: str) -> None:
    LoraFields(**PRESETS[preset].lora)
    TrainingFields(**PRESETS[preset].training)
    assert preset_values(preset).keys() == FIELDS.keys()


async def test_a_preset_leaves_alone_what_the_data_decides(form: TrainingForm) -> None:
    names = ["drop_broken_rows", *(name for labels in GROUPS.values() for name in labels)]
    applied = dict(zip(names, form.apply_preset("Quick"), strict=True))
    assert applied["num_train_epochs"] == 1.0
    assert all(applied[name] == gr.skip() for name in OF_THE_DATA)


async def test_values_reach_the_job(form: TrainingForm) -> None:
    lora, arguments = form.settings(values(form, target_modules=" q_proj, v_proj,", quantization="int8", max_steps=7))
    assert lora.target_modules == ("q_proj", "v_proj")
    assert (arguments.quantization, arguments.max_steps) == ("int8", 7)
    assert asdict(arguments) | {"quantization": None, "max_steps": 0} == asdict(TrainingArguments())


@pytest.mark.parametrize("wrong", [{"r": 0}, {"learning_rate": None}, {"target_modules": ""}, {"seed": 1.5}])
async def test_nonsense_is_refused_by_the_api_s_bounds(form: TrainingForm, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        form.settings(values(form, **wrong))


async def test_preferences_are_learned_by_dpo_and_broken_rows_ask_for_a_decision(form: TrainingForm) -> None:
    objective, drop = form.fitted[-2:]
    fit = form.fit(dataset("preference", num_broken=2))
    assert fit[objective] == "dpo"
    assert fit[drop].visible is True
    assert form.fit(dataset())[drop].visible is False
    assert "2 of them cannot be used" in note_html(dataset("preference", num_broken=2))
    assert form.fit(dataset())[objective] == "sft"
    assert note_html(None) == ""
