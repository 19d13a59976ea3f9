from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hdmnet.data.types import Episode, EvaluationBatch, FeatureKey
from hdmnet.metrics import FewShotIoU, count_pixels
from hdmnet.tasks.episode_table import gather_tables, join_tables, read_episodes, tabulate_batch
from hdmnet.tasks.intervals import estimate
from tests.helpers.episode_tables import table

NAMES = ("ant", "bee", "a, b")
PIXELS = torch.tensor([[[5, 1], [2, 3]], [[0, 0], [0, 9]], [[4, 0], [0, 6]]])


def planned():
    """Three episodes to compute, of which the last stands for two of the manifests."""
    none = torch.empty(0)
    keys = [FeatureKey(name) for name in ("p", "q", "r")]
    return EvaluationBatch(
        drop=[], new_queries=[], query_images=none, new_supports=[], support_images=none, support_masks=none,
        queries=keys, supports=[[], [], []], query_masks_original=[], mask_index=[],
        class_index=torch.tensor([1, 0, 2]), item=[0, 1, 2, 2], index=torch.tensor([4, 7, 2, 3]),
        seed_index=torch.tensor([0, 1, 0, 0]),
    )  # fmt: skip


def plain():
    none = torch.empty(0)
    return Episode(
        query_image=none, query_mask=none, support_images=none, support_masks=none,
        class_index=torch.tensor([1, 0, 2]), query_id=["p", "q", "r"], support_ids=[[], [], []],
        index=torch.tensor([4, 7, 2]), seed_index=torch.tensor([0, 1, 0]),
    )  # fmt: skip


def rows(found):
    places = zip(found.seed.tolist(), found.index.tolist(), found.class_index.tolist(), found.queries, strict=True)
    return list(places)


def test_each_episode_has_the_pixels_of_what_it_equals():
    batch = planned()
    one = tabulate_batch(batch, NAMES, batch.item, {"all": (PIXELS, range(3)), "some": (PIXELS[2:], [2])})
    found = gather_tables([one], NAMES)  # alone: nothing to wait for
    assert rows(found) == [(0, 2, 2, "r"), (0, 3, 2, "r"), (0, 4, 1, "p"), (1, 7, 0, "q")]
    assert found.pixels["all"][[0, 2, 3]].tolist() == PIXELS[[2, 0, 1]].tolist()
    assert found.has("some").tolist() == [True, True, False, False]
    assert found.has("all", "none").tolist() == [False] * 4
    assert rows(found.first_seed()) == rows(found)[:3]
    simple = tabulate_batch(plain(), NAMES, [0, 1, 2], {"all": (PIXELS, range(3))})
    assert rows(join_tables([simple], NAMES)) == [row for row in rows(found) if row[1] != 3]


def test_what_processes_have_run_comes_together_once():
    whole = table(NAMES, a=[(i, i % 3, f"q{i}", i, 9) for i in range(7)])
    parts = [whole.choose(np.arange(7) % 2 == rank) for rank in (0, 1)]
    for several in (parts, parts[::-1], [*parts, whole]):
        joined = join_tables(several, NAMES)
        assert rows(joined) == rows(whole)
        assert np.array_equal(joined.pixels["a"], whole.pixels["a"])
    beside = table(NAMES, ones=[(2, 2, "q2", 1, 9)])
    both = join_tables([whole, beside], NAMES)
    assert both.has("a").all()
    assert both.has("a", "ones").tolist() == [False, False, True, *[False] * 4]


def test_it_is_read_as_it_was_written(tmp_path):
    written = table(
        NAMES,
        final=[(0, 0, "p", 3, 4), (1, 2, 'x,"y"\udcff', 0, 2), (0, 1, "p", 1, 1, 1)],
        ones=[(1, 2, 'x,"y"\udcff', 1, 2)],
    )
    path = tmp_path / "run" / "episodes.csv"
    written.write(path)
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    assert lines[0] == (
        "seed,episode,class,query,background_pixels,object_pixels,final_false,final_found,ones_false,ones_found"
    )
    assert lines[1] == "0,0,ant,p,50,4,0,3,,"
    found = read_episodes(path, NAMES)
    assert rows(found) == rows(written)
    for name, pixels in written.pixels.items():
        assert np.array_equal(found.pixels[name], pixels), name
    none = join_tables([], NAMES)
    none.write(path)
    assert len(read_episodes(path, NAMES)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("seed,", "sheep,"), "its columns are others"),
        (lambda text: text.replace("p,50", "p,many"), "many"),
        (lambda text: text.replace("ant", "wasp"), "wasp"),
        (lambda text: text[:-4], "its columns are others"),
        (lambda text: "", "not enough values"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "episodes.csv"
    table(NAMES, final=[(0, 0, "p", 3, 4)]).write(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as refusal:
        read_episodes(path, NAMES)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate on the same checkpoint does"):
        read_episodes(tmp_path / "episodes.csv", NAMES)


def test_shares_and_ious():
    found = table(final=[(0, 0, "p", 3, 4), (1, 0, "q", 0, 0)])
    assert found.object_shares("final").tolist() == [4 / 54, 0]
    assert found.ious("final")[0] == 3 / 4
    assert np.isnan(found.ious("final")[1])


def test_the_mean_is_the_metrics():
    random = np.random.default_rng(0)
    metric = FewShotIoU(3)
    tables = []
    for index in range(40):
        target = torch.from_numpy(random.choice([0, 1, 255], (1, 6, 7), p=[0.6, 0.3, 0.1]))
        predicted, value = torch.from_numpy(random.random((1, 6, 7)) < 0.4), torch.tensor([index % 2])
        metric.update(predicted, target, value)
        batch = SimpleNamespace(
            query_id=[f"q{index}"], seed_index=torch.tensor([0]), index=torch.tensor([index]), class_index=value
        )
        tables.append(tabulate_batch(batch, NAMES, [0], {"final": (count_pixels(predicted, target), [0])}))
    found = join_tables(tables, NAMES)
    assert estimate(found, "final").values[0] == pytest.approx(float(metric.compute()["miou"]), abs=1e-15)
