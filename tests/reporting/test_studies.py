from __future__ import annotations

import json

import pytest

from hdmnet.reporting.collect import collect
from hdmnet.reporting.paper import paper_tables
from hdmnet.reporting.settings import deviations, flatten, is_papers_dataset, row_values, settings_of
from hdmnet.reporting.studies import ablation_studies, full_studies, row_of
from tests.helpers.configs import recorded
from tests.helpers.reports import write_run

ALL = tuple(name for table in paper_tables().values() for name in table.ablations)


@pytest.fixture
def runs_of(tmp_path):
    def write(*keys):
        for number, own in enumerate(keys):
            write_run(tmp_path, f"run{number}", **own)
        return collect([tmp_path]).runs

    return write


def rows(runs, number):
    studies, warnings = ablation_studies(runs, paper_tables()[number].ablations)
    return [
        {row: [run.folder.name for run in group] for row, group in study.rows.items()} for study in studies
    ], warnings


@pytest.mark.long
@pytest.mark.parametrize(
    ("dataset", "name"),
    # Shapes too where a row sets the ensemble, which is off by default there, or another model.
    [*(("coco", name) for name in ALL), *(("shapes", name) for name in paper_tables()[4].ablations)],
)
def test_every_named_run_belongs_to_its_own_row(runs_of, name, dataset):
    (run,) = runs_of({"ablation": name, "dataset": dataset})
    for number in range(4, 10):
        names = paper_tables()[number].ablations
        if name in names:
            assert row_of(run, names)[0] == name
            assert row_of(run, names)[2] is None


def test_a_full_run_fills_the_rows_that_are_the_full_method(runs_of):
    (run,) = runs_of({"dataset": "coco"})
    found = {number: row_of(run, paper_tables()[number].ablations)[0] for number in range(4, 10)}
    assert found == {
        4: "table4_distillation",
        5: "table5_inverse_softmax",
        6: "table6_kl_teacher",
        7: "table7_stages3",
        8: "table8_with_mask",
        9: "table9_t1",
    }


def test_rows_are_filled_by_config_not_by_name(runs_of):
    runs = runs_of(
        {"ablation": "table9_t2"},
        {},  # the full method: T = 1
        {"overrides": ("loss.temperature=5",)},  # of a free sweep
        {"overrides": ("loss.temperature=3",)},  # no row of the paper
    )
    found, warnings = rows(runs, 9)
    assert found == [{"table9_t2": ["run0"], "table9_t1": ["run1"], "table9_t5": ["run2"]}]
    assert warnings == []


def test_a_run_that_differs_elsewhere_stands_apart(runs_of):
    runs = runs_of(
        {"ablation": "table9_t1"}, {"ablation": "table9_t2"}, {"overrides": ("optim.max_steps=7",)},
        {"ablation": "table9_t2", "overrides": ("optim.max_steps=7",)},
    )  # fmt: skip
    studies, _ = ablation_studies(runs, paper_tables()[9].ablations)
    assert [sorted(run.folder.name for run in study.runs) for study in studies] == [["run0", "run1"], ["run2", "run3"]]
    assert [study.label for study in studies] == [
        "shapes, resnet_narrow, 1-shot; optim.max_steps=500",
        "shapes, resnet_narrow, 1-shot; optim.max_steps=7",
    ]


def test_one_full_run_alone_makes_no_ablation_table(runs_of):
    runs = runs_of({}, {"fold": 1}, {"ablation": "table5_cosine"})
    assert rows(runs, 9) == ([], [])
    assert rows(runs, 5)[0] == [{"table5_inverse_softmax": ["run0", "run1"], "table5_cosine": ["run2"]}]


def test_a_name_that_the_config_belies_is_told(runs_of):
    runs = runs_of({"ablation": "table9_t2", "overrides": ("loss.temperature=5",)})
    found, (warning,) = rows(runs, 9)
    assert found == [{"table9_t5": ["run0"]}]
    assert (
        "is named table9_t2 but its config is not conf/ablation's (loss.temperature=5): counted as table9_t5" in warning
    )


def test_a_run_older_than_a_switch_counts_as_its_default(runs_of, tmp_path):
    run, newer = runs_of({}, {"ablation": "table6_none"})
    del run.config["loss"]["distillation_kind"]
    assert rows([run, newer], 6)[0] == [{"table6_kl_teacher": ["run0"], "table6_none": ["run1"]}]


def test_duplicates_and_unequal_seeds_are_told(runs_of):
    runs = runs_of({"seed": 0}, {"seed": 1}, {"fold": 1}, {"fold": 1}, {"ablation": "table9_t2"})
    _, warnings = rows(runs, 9)
    assert sum(warning.startswith("not used, another run of the same setting") for warning in warnings) == 1
    (unequal,) = [warning for warning in warnings if "unequal training seeds" in warning]
    assert unequal.endswith("(fold 0: 0, 1; fold 1: 0)")


def test_the_full_method_by_shots_and_by_how_it_was_trained(runs_of, tmp_path):
    best = str(tmp_path / "run0" / "checkpoints" / "best.ckpt")
    runs = runs_of(
        {"shot": 1},
        {"shot": 5},
        {"shot": 5, "entry_point": "evaluate", "checkpoint": best},
        {"ablation": "table9_t1"},  # the full method by another name
        {"ablation": "table9_t2"},
        {"overrides": ("support_mask=ones",)},
    )
    studies, _ = full_studies(runs, ALL)
    found = {study.label: {row: len(group) for row, group in study.rows.items()} for study in studies}
    assert found == {"shapes, resnet_narrow": {"1": 1, "5": 1}, "shapes, resnet_narrow, trained 1-shot": {"5": 1}}
    assert "run4" not in {run.folder.name for study in studies for run in study.runs}


def test_what_a_run_sets_otherwise_is_told_once(runs_of):
    runs = runs_of({}, {"dataset": "coco", "overrides": ("dataset.train_list=mine.txt", "optim.max_steps=7")})
    assert deviations(runs[0]) == []
    assert deviations(runs[1]) == ["dataset.train_list=mine.txt", "optim.max_steps=7"]
    assert deviations(runs[1], ["dataset.train_list"]) == ["optim.max_steps=7"]


def test_the_papers_data_set_is_known_by_name_and_lists(runs_of):
    whole, part, shapes = runs_of(
        {"dataset": "coco"}, {"dataset": "coco", "overrides": ("dataset.val_list=mine.txt",)}, {}
    )
    assert [is_papers_dataset(run, "coco") for run in (whole, part, shapes)] == [True, False, False]
    assert not is_papers_dataset(whole, "pascal")


def test_settings_leave_out_what_belongs_to_the_machine_fold_and_seed(runs_of):
    one, two = runs_of(
        {}, {"fold": 3, "seed": 4, "overrides": ("paths.data_dir=elsewhere", "dataset.num_test_seeds=9")}
    )
    assert settings_of(one) == settings_of(two)
    assert flatten({"a": {"b": 1.0}, "c": [1, None]}) == {"a.b": "1", "c": "[1, null]"}


def test_a_row_changes_what_hydra_makes_of_its_file():
    """Most files are laid over the config, not composed: against what is recorded of the whole composition."""
    sections = recorded()
    for name, changes in sections.items():
        option = name.removeprefix("train ablation=")
        if option in (name, "none"):
            continue
        found = row_values("shapes", "resnet_narrow", (option,))[option]
        keys = {line[2:].partition(": ")[0] for line in changes} - {"ablation"}
        settings = {key for key in keys if key.partition(".")[0] not in ("callbacks", "trainer")}
        assert found.keys() == settings, option
        for line in changes:
            key, _, value = line.removeprefix("+ ").partition(": ")
            if line.startswith("+ ") and key in found and "${" not in value:
                assert flatten({key: json.loads(value)})[key] == found[key], option
