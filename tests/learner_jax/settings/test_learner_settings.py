"""Settings that can't go together are refused by name, at the bound exactly; those that can are taken."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from learner_jax.settings import HostsSettings, KLSettings, LearnerSettings, LossSettings, MeshSettings
from learner_jax.settings.learner import AdvantageSettings, MismatchSettings, OptimizerSettings, PolicySettings

Kwargs = dict[str, Any]

GAE: Kwargs = {"advantage": {"estimator": "gae"}, "value": {"model": "shared"}}
WHITENED: Kwargs = GAE | {"advantage": {"estimator": "gae", "whiten": True}}


def learner(**changed: Any) -> LearnerSettings:
    whole: Kwargs = {"steps": 3, "groups_per_step": 4, "sequence_length": 8, "microbatch_rows": 4} | changed
    return LearnerSettings.model_validate(whole)


def loss(**changed: Any) -> LossSettings:
    return LossSettings.model_validate(changed)


def two_hosts(**changed: Any) -> LearnerSettings:
    return learner(hosts={"count": 2}, **changed)


def optimizer(**changed: Any) -> OptimizerSettings:
    return OptimizerSettings(**changed)


def mismatch(**changed: Any) -> MismatchSettings:
    return MismatchSettings.model_validate(changed)


REFUSED: list[tuple[Any, Kwargs, str]] = [
    (optimizer, {"learning_rate": 0.5, "weight_decay": 2.0}, "learning_rate x weight_decay is 1, expected below 1"),
    (mismatch, {"band": [1.0, 2.0]}, r"band is \[1.0, 2.0\]"),
    (mismatch, {"band": [0.5, 1.0]}, r"band is \[0.5, 1.0\]"),
    (mismatch, {"sequence_band": [-0.1, 2.0]}, r"sequence_band is \[-0.1, 2.0\]"),
    (mismatch, {"lagging": True}, "lagging recomputes log-probs for corrections, but none is set"),
    (KLSettings, {"target": 0.1}, "target needs the reference's log-probs"),
    (KLSettings, {"budget": 0.1}, "budget needs"),
    (KLSettings, {"reference": "there"}, "reference needs"),
    (KLSettings, {"reset_every": 1}, "reset_every needs"),
    (KLSettings, {"coefficient": 0.1, "estimator": "k1"}, "k1 as a loss term has no effect"),
    (KLSettings, {"coefficient": 0.1, "use": "reward", "importance_weighted": True}, 'is for use = "loss"'),
    (loss, {"advantage": {"estimator": "gae"}}, "gae needs a value function"),
    (loss, {"advantage": {"estimator": "vtrace"}}, "vtrace needs a value function"),
    (loss, {"value": {"model": "shared"}}, "value.model is shared, but advantage.estimator grpo uses no values"),
    (loss, {"advantage": {"whiten": True}}, "whiten is for gae; grpo"),
    (loss, {"groups": {"zero_variance": "drop"}, **GAE}, "gae learns from groups whose rewards are all the same"),
    (loss, {"groups": {"zero_variance": "drop"}, "advantage": {"estimator": "reinforce_pp"}}, "reinforce_pp learns"),
    (loss, {"policy": {"dual_clip": 3.0, "objective": "cispo"}}, "dual_clip is for ppo and decoupled_ppo, not cispo"),
    (loss, {"policy": {"objective": "gspo"}, "advantage": {"segments": "turn"}}, "gspo has one ratio for a whole"),
    (loss, {"reduction": "constant"}, 'set constant_tokens .* together with reduction = "constant", or neither'),
    (loss, {"constant_tokens": 5}, 'set constant_tokens .* together with reduction = "constant", or neither'),
    (MeshSettings, {"data": 0}, r"data, fsdp and tensor are \[0, -1, 1\]"),
    (MeshSettings, {"data": -1}, r"data, fsdp and tensor are \[-1, -1, 1\]"),
    (HostsSettings, {"count": 2, "index": 2}, "index is 2, expected 0 to 1: count is 2"),
    (learner, {"row_tokens": [4, 7]}, r"row_tokens is \[4, 7\], but sequence_length is 8"),
    (learner, {"mesh": {"data": 2, "fsdp": 3}}, "does not divide over mesh.data x mesh.fsdp = 6"),
    (two_hosts, {"microbatch_rows": 5}, r"microbatch_rows is 5, .*does not divide by hosts.count 2"),
    (two_hosts, {"groups_per_step": 1}, "groups_per_step / minibatches is 1, fewer than hosts.count 2"),
    (two_hosts, {"minibatches": 4}, "groups_per_step / minibatches is 1, fewer than hosts.count 2"),
    (two_hosts, {"loss": WHITENED}, "each of 2 hosts holds a part"),
    (learner, {"loss": {"groups": {"overlong": "mask", "overlong_buffer_tokens": 1}}}, 'not "mask"'),
    (learner, {"minibatches": 3}, "minibatches is 3 and does not divide groups_per_step 4"),
    (learner, {"loss": {"mismatch": {"veto": 0.1, "lagging": True}}}, "set mismatch_versions"),
    (loss, {"policy": {"objective": "pp"}}, "'pp' is unknown; expected one of ppo, decoupled_ppo, cispo, gspo, policy"),
    (loss, {"advantage": {"estimator": "gea"}}, "'gea' is unknown; .* rloo, reinforce_pp, .*, gae, vtrace, or "),
]

TAKEN: list[tuple[Any, Kwargs]] = [
    (optimizer, {"learning_rate": 0.5, "weight_decay": 1.9}),
    (mismatch, {"band": [0.0, 1.1], "sequence_band": [0.9, 1.1]}),
    *((mismatch, {name: value, "lagging": True}) for name, value in (("truncation", 1.0), ("veto", 0.5))),
    *((mismatch, {name: [0.5, 2.0], "lagging": True}) for name in ("band", "sequence_band")),
    (KLSettings, {"coefficient": 0.1, "target": 0.1, "budget": 1.0, "reference": "there", "reset_every": 2}),
    (KLSettings, {"estimator": "k1", "use": "reward"}),
    (KLSettings, {"estimator": "k1", "importance_weighted": True}),
    (KLSettings, {"estimator": "k2"}),
    (loss, GAE),
    (loss, WHITENED),
    (loss, {"groups": {"zero_variance": "drop"}}),
    (loss, {"groups": {"zero_variance": "drop"}, "advantage": {"estimator": "reinforce_pp_baseline"}}),
    (loss, {"policy": {"dual_clip": 3.0}}),
    (loss, {"policy": {"dual_clip": 3.0, "objective": "decoupled_ppo"}}),
    (loss, {"policy": {"objective": "gspo"}}),
    (loss, {"advantage": {"segments": "turn"}}),
    (loss, {"reduction": "constant", "constant_tokens": 5}),
    (loss, {"policy": {"objective": "mine.own:objective"}, "advantage": {"estimator": "mine.own:estimator"}}),
    (MeshSettings, {"data": -1, "fsdp": 2}),
    (MeshSettings, {"data": 2, "fsdp": 2, "tensor": 2}),
    (HostsSettings, {"count": 2, "index": 1}),
    (learner, {"row_tokens": [4, 8]}),
    (learner, {"mesh": {"data": 2, "fsdp": -1}}),
    (learner, {"mesh": {"data": 2, "fsdp": 2}}),
    (two_hosts, {"minibatches": 2}),
    (two_hosts, {"loss": GAE}),
    (learner, {"microbatch_rows": 5, "groups_per_step": 1, "loss": WHITENED}),
    (learner, {"loss": {"groups": {"overlong": "penalize", "overlong_buffer_tokens": 1}}}),
    (learner, {"loss": {"groups": {"overlong": "mask"}}}),
    (learner, {"mismatch_versions": 1, "loss": {"mismatch": {"veto": 0.1, "lagging": True}}}),
]


@pytest.mark.parametrize(("settings", "changed", "message"), REFUSED)
def test_what_cannot_go_together_is_refused_by_name(settings: Any, changed: Kwargs, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        settings(**changed)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(("settings", "changed"), TAKEN)
def test_what_can_go_together_is_taken(settings: Any, changed: Kwargs) -> None:
    assert set(changed) <= settings(**changed).model_fields_set


def test_each_estimator_says_what_it_needs_and_compares() -> None:
    """By estimator: whether it uses values, has a baseline of its group, and normalises over the batch."""

    def of(estimator: str) -> tuple[bool, bool, bool]:
        found = AdvantageSettings(estimator=estimator)
        return found.uses_values, found.has_group_baseline, found.compares_groups

    assert {name: of(name) for name in ("grpo", "dr_grpo", "rloo")} == dict.fromkeys(
        ("grpo", "dr_grpo", "rloo"), (False, True, False)
    )
    assert of("reinforce_pp") == (False, False, True)
    assert of("reinforce_pp_baseline") == (False, True, True)
    assert of("gae") == of("vtrace") == (True, False, False)
    assert of("mine.own:estimator") == (False, False, False)


def test_the_ratio_is_left_to_the_advantages_by_impala_s_policy_gradient_alone() -> None:
    def leaves(objective: str, importance: Any) -> bool:
        return PolicySettings(objective=objective, importance=importance).leaves_ratio_to_advantages

    assert leaves("policy_gradient", "none")
    assert not leaves("policy_gradient", "truncated")
    assert not leaves("ppo", "none")


def test_any_correction_of_the_sampler_makes_it_active() -> None:
    assert not mismatch().active
    assert mismatch(truncation=1.0).active
    assert all(mismatch(**{name: [0.5, 2.0]}).active for name in ("band", "sequence_band"))
    assert mismatch(veto=0.5).active


def test_values_are_needed_ahead_to_whiten_and_to_clip() -> None:
    assert not loss(**GAE).needs_values_ahead
    assert loss(**WHITENED).needs_values_ahead
    assert loss(**GAE | {"value": {"model": "shared", "clip": 0.2}}).needs_values_ahead


def test_rows_have_the_length_of_sequences_unless_given() -> None:
    assert learner().row_lengths == (8,)
    assert learner(row_tokens=[4, 16]).row_lengths == (4, 16)


def test_sizes_of_the_mesh_stand_in_the_order_of_its_axes() -> None:
    assert MeshSettings(data=2, fsdp=3, tensor=5).sizes == (2, 3, 5)
