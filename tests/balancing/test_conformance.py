"""Every balancer of the catalog keeps the protocol: state by task name, exact resumption, no crash at the corners.

A method joins by being listed. Those that must evaluate losses elsewhere ("closure") are tested with their own doors.
"""

import inspect
import io

import pytest
import torch
from tests.conformance.entries import entries_for

from pluribus.balancing import EMA, FAMO, Balancer, EqualWeighting, FlatRegions
from pluribus.catalog import entries
from pluribus.errors import BadInput

METHODS = entries_for(__name__, "balancer", "jacobians")
TASKS = ("ant", "bee", "cat", "dog")


def make(entry):
    return entry.resolve()()


def feed(balancer, tasks, seed, scale=1.0, columns=12):
    """One call with a Jacobian that depends on the task's name and the seed only, not on the company."""
    rows = [torch.randn(columns, generator=torch.Generator().manual_seed(1000 * seed + TASKS.index(t))) for t in tasks]
    j = scale * torch.stack(rows).double()
    losses = torch.tensor([0.5 + TASKS.index(t) + 0.1 * seed for t in tasks], dtype=torch.float64)
    if balancer.signal == "jacobian":
        out = balancer.direction(j, tasks=tasks, losses=losses)
    elif balancer.signal == "cross_gram":
        out = balancer.weights(j @ (j + 0.1).T, tasks=tasks, losses=losses)
    elif balancer.signal == "gram":
        out = balancer.weights(j @ j.T, tasks=tasks, losses=losses)
    elif balancer.signal == "norms":
        out = balancer.weights(j.square().sum(1), tasks=tasks, losses=losses)
    else:
        out = balancer.weights(losses, tasks=tasks)
    balancer.after_step({t: 0.9 * loss for t, loss in zip(tasks, losses)})
    return out


def by_task(balancer):
    """What the state says of each task: {path: {task: tensor}}, and the rest."""
    found, rest = {}, {}

    def walk(path, value):
        if isinstance(value, dict) and set(value) == {"names", "values"}:
            stack = value["values"]
            if stack is not None and stack.ndim == 2 and stack.shape[0] == stack.shape[1] == len(value["names"]):
                found[path] = {a: dict(zip(value["names"], row)) for a, row in zip(value["names"], stack)}
            else:
                found[path] = dict(zip(value["names"], [] if stack is None else stack))
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{path}/{key}", item)
        else:
            rest[path] = value

    walk("", balancer.state_dict())
    return found, rest


each = pytest.mark.parametrize("entry", METHODS, ids=lambda e: e.name)


def test_the_catalog_lists_the_methods():
    """A balancer that the package hands out and the catalog does not know would never be tested here."""
    import pluribus.balancing as package

    listed = {e.resolve() for family in ("balancer", "balancer_wrapper") for e in entries(family=family)}
    public = {value for name in package.__all__ if inspect.isclass(value := getattr(package, name))}
    assert {c.__name__ for c in public if issubclass(c, Balancer)} - {c.__name__ for c in listed} <= {"Balancer", "TorchJD"}


@each
def test_the_catalog_tells_the_truth(entry):
    balancer = make(entry)
    assert set(entry.signal) == set(balancer.needs)
    assert set(entry.doors) == set(balancer.doors)
    assert isinstance(balancer, Balancer)
    assert (inspect.getdoc(type(balancer)) or "").strip()
    assert balancer.batches in (1, 3)


@each
def test_resumes_bit_for_bit(entry):
    """Interrupted and resumed equals uninterrupted, through torch.save, for three further steps and an epoch's end."""
    through, first = make(entry), make(entry)
    for balancer in (through, first):
        for seed in range(3):
            feed(balancer, TASKS, seed)
        balancer.epoch_end()
        feed(balancer, TASKS[1:], 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make(entry)
    second.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(4, 7):
        assert torch.equal(feed(through, TASKS, seed), feed(second, TASKS, seed))
        through.epoch_end()
        second.epoch_end()


@each
def test_a_saved_state_does_not_move(entry):
    balancer = make(entry)
    feed(balancer, TASKS, 0)
    state = balancer.state_dict()
    before = io.BytesIO()
    torch.save(state, before)
    for seed in range(1, 4):
        feed(balancer, TASKS, seed)
    after = io.BytesIO()
    torch.save(state, after)
    assert before.getvalue() == after.getvalue()


@each
def test_absent_tasks_keep_their_state(entry):
    """Steps without "cat", in changing order: nothing that is kept of "cat" moves by a bit."""
    balancer = make(entry)
    feed(balancer, TASKS, 0)
    before, _ = by_task(balancer)
    for seed, tasks in enumerate([("dog", "ant"), ("bee",), ("ant", "bee", "dog")], start=1):
        feed(balancer, tasks, seed)
    after, _ = by_task(balancer)
    for path, rows in before.items():
        if "cat" not in rows:
            continue
        mine = rows["cat"]
        if isinstance(mine, dict):  # a row of pairs: those without "cat" may move
            assert all(torch.equal(mine[other], after[path]["cat"][other]) for other in mine)
            assert all(torch.equal(rows[o]["cat"], after[path][o]["cat"]) for o in rows)
        else:
            assert torch.equal(mine, after[path]["cat"]), path


@each
def test_permuted_tasks_are_the_same_tasks(entry):
    """State follows names: after steps in one order, a step in another gives the permuted answer (random walks apart)."""
    if "generator" in make(entry).mutable:
        pytest.skip("random by row; the properties test its distribution")
    straight, permuted = make(entry), make(entry)
    order = (2, 0, 3, 1)
    for seed in range(3):
        a = feed(straight, TASKS, seed)
        b = feed(permuted, tuple(TASKS[i] for i in order), seed)
        if straight.signal != "jacobian":
            a = a[list(order)]
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7)


@each
def test_absent_means_no_vote(entry):
    """With "cat" absent from the first step on, it makes no difference that "cat" exists (its steps are another run's)."""
    if "generator" in make(entry).mutable:
        pytest.skip("random by row; the properties test its distribution")
    alone, beside = make(entry), make(entry)
    feed(beside, ("cat",), 9)
    for seed in range(3):
        tasks = ("ant", "bee", "dog")
        torch.testing.assert_close(feed(beside, tasks, seed), feed(alone, tasks, seed), rtol=1e-9, atol=1e-12)


@each
def test_one_task_and_nothing_at_all(entry):
    for tasks, scale in ((("ant",), 1.0), (TASKS, 0.0), (("bee",), 0.0)):
        balancer = make(entry)
        for seed in range(3):
            assert torch.isfinite(feed(balancer, tasks, seed, scale)).all()
        balancer.epoch_end()
        assert torch.isfinite(feed(balancer, tasks, 4)).all()


@each
def test_reset_forgets(entry):
    balancer = make(entry)
    first = [feed(balancer, TASKS, seed) for seed in range(3)]
    balancer.epoch_end()
    balancer.reset()
    assert all(torch.equal(a, feed(balancer, TASKS, seed)) for seed, a in enumerate(first))


@each
def test_answers_carry_no_graph_and_move_no_input(entry):
    balancer = make(entry)
    j = torch.randn(3, 8, requires_grad=True)
    losses = torch.rand(3, requires_grad=True)
    if balancer.signal == "jacobian":
        out, source = balancer.direction(j, losses=losses), j
    else:
        square = balancer.signal in ("gram", "cross_gram")
        source = j @ j.T if square else j.square().sum(1) if balancer.signal == "norms" else losses
        out = balancer.weights(source, losses=losses)
    kept = source.detach().clone()
    assert not out.requires_grad
    assert torch.equal(source.detach(), kept)
    assert out.dtype == torch.float32


@each
def test_bad_calls_are_named(entry):
    balancer = make(entry)
    with pytest.raises(BadInput, match="two tasks have one name"):
        square = balancer.signal in ("gram", "cross_gram", "jacobian")
        balancer.weights(torch.eye(2) if square else torch.ones(2), tasks=["a", "a"])
    if balancer.signal != "jacobian":
        with pytest.raises(BadInput, match="shape"):
            balancer.weights(torch.ones(2, 3), losses=torch.ones(2))
    if "losses" in balancer.needs and balancer.signal != "losses":
        with pytest.raises(BadInput, match="losses are missing"):
            balancer.direction(torch.eye(2))
    with pytest.raises(BadInput, match="there is no task"):
        balancer.direction(torch.zeros(0, 4))
    with pytest.raises(BadInput, match="state holds"):
        balancer.load_state_dict({"nothing": 1})


def hyper_parameters():
    from pluribus.balancing import (
        DBMTL,
        EMA,
        FAMO,
        IMTLL,
        MGDA,
        STCH,
        AlignedMTL,
        CAGrad,
        DualProj,
        DynamicWeightAverage,
        EqualWeighting,
        ExcessMTL,
        FairGrad,
        GeometricLoss,
        GradDrop,
        GradNorm,
        GradVac,
        LogLoss,
        MoCo,
        MoDo,
        NashMTL,
        RandomLossWeighting,
        SDMGrad,
        UncertaintyWeighting,
        UPGrad,
    )

    return [
        (lambda: UPGrad(preference=[1.0, -1.0]), "preference of task 1 is -1"),
        (lambda: DualProj(preference={"a": -0.5}), "preference of task 'a' is -0.5"),
        (lambda: NashMTL(preference=[0.0, 0.0]), "no task has a positive preference"),
        (lambda: AlignedMTL(preference=[float("nan")]), "preference"),
        (lambda: EqualWeighting("average"), "unknown reduction"),
        (lambda: AlignedMTL("max"), "unknown scale"),
        (lambda: MGDA("l1"), "unknown normaliser"),
        (lambda: MGDA(applied="both"), "unknown use"),
        (lambda: RandomLossWeighting("cauchy"), "unknown law"),
        (lambda: CAGrad(-0.1), "c is -0.1"),
        (lambda: CAGrad(rescale=3), "unknown rescale"),
        (lambda: FairGrad(0.0), "alpha is 0.0"),
        (lambda: NashMTL(max_norm=0.0), "max_norm is 0.0"),
        (lambda: UPGrad(regularisation=-1.0), "regularisation is -1"),
        (lambda: GradVac(1.5), "beta is 1.5"),
        (lambda: DBMTL(-0.1), "beta is -0.1"),
        (lambda: MoCo(onto="ball"), "unknown projection"),
        (lambda: MoCo(rho=-1.0), "rho is -1"),
        (lambda: MoDo(gamma=0.0), "gamma is 0"),
        (lambda: SDMGrad(lam=-1.0), "lam is -1"),
        (lambda: ExcessMTL(warmup=0), "warmup is 0"),
        (lambda: STCH(mu=0.0), "mu is 0"),
        (lambda: STCH(warmup=-1), "warmup is -1"),
        (lambda: FAMO(lr=-1.0), "lr is -1"),
        (lambda: FAMO(weight_decay=-1.0), "weight_decay is -1"),
        (lambda: GradNorm(alpha=-1.0), "alpha is -1"),
        (lambda: GradDrop(leak={"a": 2.0}), "leak of task 'a' is 2"),
        (lambda: DynamicWeightAverage(0.0), "temperature is 0"),
        (lambda: UncertaintyWeighting(lr=0.0), "lr is 0"),
        (lambda: IMTLL(lr=float("nan")), "lr is nan"),
        (lambda: GeometricLoss(0.0), "floor is 0"),
        (lambda: LogLoss(0.0), "epsilon is 0"),
        (lambda: EMA(UPGrad(), 1.5), "beta is 1.5"),
        (lambda: EMA(MoCo()), "no weights to average"),
        (lambda: MGDA("loss").weights(torch.eye(2)), "losses are missing"),
        (lambda: UPGrad(preference=[1.0, 2.0]).weights(torch.eye(3)), "2 preferences for 3 tasks"),
        (lambda: UPGrad(preference={"a": 1.0}).weights(torch.eye(2), tasks=["a", "b"]), "does not name 'b'"),
        (lambda: MoDo().direction(torch.eye(2)), "independent batches"),
        (lambda: UPGrad().weights(torch.eye(2), tasks=["a"]), "1 task names for 2 rows"),
        (lambda: UPGrad().direction(torch.ones(3)), "Jacobian has shape"),
        (lambda: GradDrop().on_features(torch.ones(2, 3, 4), torch.ones(3, 5)), "gradients have shape"),
    ]


@pytest.mark.parametrize(("call", "message"), hyper_parameters(), ids=lambda x: x if isinstance(x, str) else "")
def test_bad_settings_say_what_is_wrong(call, message):
    with pytest.raises(BadInput, match=message):
        call()


# -- what a training loop asks ------------------------------------------------------------------------------------------------

ALL = entries(family="balancer")
every = pytest.mark.parametrize("entry", ALL, ids=lambda e: e.name)


@every
def test_a_training_makes_it_by_its_defaults(entry):
    """If this fails, a study cannot make the balancer without knowing which one it is."""
    balancer = entry.resolve().for_training(lr=0.01, classification=["ant"])
    assert type(balancer) is entry.resolve()
    assert set(entry.signal) == set(balancer.needs)
    assert balancer.door() in balancer.doors
    assert balancer.door(processes=2) in balancer.doors
    assert balancer.draws == balancer.batches + ("validation" in balancer.needs)
    assert balancer.needs >= {"closure"} or "validation" not in balancer.needs


def test_what_a_training_alone_knows_reaches_the_method():
    found = {e.name: e.resolve().for_training(lr=0.03, classification=["ant"]) for e in ALL}
    assert found["auto_lambda"].lr == 0.03
    assert set(found["uncertainty"].classification) == {"ant"}
    assert {name for name, each in found.items() if not each.distributed} == {"auto_lambda"}
    assert {name for name, each in found.items() if each.draws > 1} == {"auto_lambda", "modo", "sdmgrad"}


def test_the_losses_after_a_step_are_evaluated_only_for_those_who_take_them():
    """If this fails, a step pays for a forward pass that nobody reads, or FAMO never learns."""
    assert {e.name for e in ALL if e.resolve().for_training(lr=0.1).wants_after_step} == {"famo"}

    for wrap in (EMA, FlatRegions):
        assert [wrap(inner).wants_after_step for inner in (FAMO(), EqualWeighting())] == [True, False]

    class Own(Balancer):
        def after_step(self, losses):
            self.told = losses

    assert Own().wants_after_step  # a method of the user's own need not say so twice


def test_a_jacobian_of_several_processes_goes_through_backward():
    class Whole(Balancer):
        needs = frozenset({"jacobian"})

    class Rowwise(Whole):
        def on_features(self, *given, **more):
            raise NotImplementedError

    assert [Whole().door(size) for size in (1, 2)] == ["combine", "backward"]
    assert [Rowwise().door(size) for size in (1, 2)] == ["combine", "combine"]
