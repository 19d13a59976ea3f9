"""What protocols set, of data sets and of evaluations, and how they get from earlier files and onto checkpoints."""

from __future__ import annotations

import pytest

from hdmnet.config.merge import merge_with_checkpoint
from hdmnet.config.protocol import dataset_settings
from hdmnet.config.renamed import _PROTOCOL, upgrade
from hdmnet.config.values import to_plain, to_stored
from tests.helpers.configs import OPTIONS

# Per protocol: whether pictures of novel classes leave the training, its list on PASCAL-5i, least area, episodes on
# PASCAL-5i and COCO-20i, seeds; then queries, supports, resize, size of the score and classes without an episode.
FACTS = {
    "ours": (True, "5953", 2048, 1000, 10000, 10, "uniform", "distinct", "square", "original", "left_out"),
    "official": (True, "5953", 2048, 1000, 10000, 10, "official", "distinct", "square", "original", "left_out"),
    "hdmnet": (True, "5953", 2048, 1000, 10000, 10, "official", "distinct", "square", "original", "zero"),
    "pfenet": (False, "5953", 2048, 5000, 20000, 1, "official", "distinct", "pad", "original", "zero"),
    "hsnet": (False, "trainaug", 1, 1000, 1000, 1, "pairs", "repeated", "square", "network", "zero"),
    "matcher": (True, "5953", 2048, 1000, 1000, 1, "turns", "repeated", "square", "network", "zero"),
    "patnet": (True, "5953", 2048, 600, 600, 1, "turns", "repeated", "square", "network", "zero"),
    "panet": (False, "trainaug", 1, 1000, 1000, 5, "classes", "distinct", "square", "network", "zero"),
}


def test_every_protocol_is_here():
    assert {file.stem for file in OPTIONS if str(file.parent) == "protocol"} == FACTS.keys()


@pytest.mark.long
@pytest.mark.parametrize("name", FACTS)
def test_each_sets_its_papers_values_together(compose_config, name):
    pascal, coco = (
        to_plain(compose_config("train", f"dataset={one}", f"protocol={name}")) for one in ("pascal", "coco")
    )
    data, other, rules = dataset_settings(pascal), dataset_settings(coco), pascal["protocol"]
    found = [data["filter_novel"], data["train_list"], data["min_area"], data["num_test_episodes"]]
    found += [other["num_test_episodes"], data["num_test_seeds"]]
    found += [rules[key] for key in ("queries", "supports", "resize", "score_at", "absent_classes")]
    assert tuple(found) == FACTS[name]
    assert data["novel_pixels"] is None
    assert other["train_list"] is None


def test_data_sets_that_a_protocol_does_not_name_keep_their_number_of_episodes(compose_config):
    """HSNet's on FSS-1000: each of the 2,400 test pictures in list order. Matcher's on LVIS-92i: 2,300 episodes."""
    for dataset, protocol, number, queries in (("fss1000", "hsnet", 2400, "pairs"), ("lvis", "matcher", 2300, "turns")):
        plain = to_plain(compose_config("evaluate", f"dataset={dataset}", f"protocol={protocol}"))
        data = dataset_settings(plain)
        assert (data["num_test_episodes"], data["num_test_seeds"], data["min_area"]) == (number, 1, 1)
        assert plain["protocol"]["queries"] == queries


def test_ours_leaves_every_key_to_the_data_set(compose_config):
    for dataset in ("shapes", "folder", "pascal", "coco", "fss1000", "lvis"):
        plain = to_plain(compose_config("train", f"dataset={dataset}"))
        assert dataset_settings(plain) == plain["dataset"]


@pytest.mark.parametrize(
    ("rule", "filter_novel", "novel_pixels"),
    [("removed", True, None), ("background", False, None), ("ignore", False, "ignore")],
)
def test_novel_pixels_have_three_rules(compose_config, rule, filter_novel, novel_pixels):
    words = ("dataset.filter_novel=false", "dataset.novel_pixels=ignore") if rule == "removed" else ()
    found = dataset_settings(to_plain(compose_config("train", f"protocol.novel_pixels={rule}", *words)))
    assert (found["filter_novel"], found["novel_pixels"]) == (filter_novel, novel_pixels)


def test_a_checkpoint_is_tested_by_its_own_protocol_or_by_the_commands(compose_config):
    stored = to_stored(compose_config("train", "dataset=pascal", "protocol=hsnet"))
    for words, episodes, area, resize in (
        ((), 1000, 1, "square"),
        (("protocol=pfenet",), 5000, 2048, "pad"),
        (("protocol=ours",), 1000, 2048, "square"),  # nothing of the training's is left
        (("protocol.resize=pad",), 1000, 1, "pad"),
    ):
        merged = to_plain(merge_with_checkpoint(compose_config("evaluate", *words), stored, words))
        data = dataset_settings(merged)
        assert (data["num_test_episodes"], data["min_area"]) == (episodes, area)
        assert merged["protocol"]["resize"] == resize


@pytest.mark.parametrize(("walk", "name"), [("uniform", "ours"), ("official", "official")])
def test_earlier_configs_named_the_walk_alone(compose_config, walk, name):
    now = to_plain(compose_config("evaluate", f"protocol={name}"))["protocol"]
    assert upgrade({"protocol": walk})["protocol"] == now
    assert _PROTOCOL.keys() == now.keys()
