"""The experts' health: units that died, experts of unequal scale, gates that decide nothing, shared experts that one task has for
itself (see `pluribus.sharing.health`; measured on validation rows as training left the network)."""

from __future__ import annotations

from pluribus.study.report.tables import Html, bullets, fold, section, table, tag
from pluribus.study.report.words import MOST, Row, count, finite, label, mean, number

DEAD, SPREAD, OCCUPIED, SLEEPY = 0.10, 4.0, 0.90, 0.99  # from where on a figure is pointed out


def experts(summary: Row) -> Html:
    """The section; nothing where no candidate in the finals has experts."""
    found = {name: [run for run in runs if run] for name, runs in summary.get("expert_health", {}).items()}
    if not any(found.values()):
        return Html("")
    groups, gates, shared, said = [], [], [], []
    for name, runs in found.items():
        who = label(summary, name)
        for group in runs[0]["dead_units"]:
            dead, zero = (100 * mean(run[key].get(group) for run in runs) for key in ("dead_units", "zero_share"))
            spreads = [run["scale_spread"].get(group) for run in runs]
            spread = max(spreads) if all(finite(s) for s in spreads) else None
            groups.append([who, group, number(dead), number(zero), "n/a" if spread is None else number(spread)])
            if dead > 100 * DEAD:
                said.append(f"{who}: {number(dead)} % of the units of {group} give the same value on every row.")
            if spread is None:
                said.append(f"{who}: an expert of {group} gives one value only.")
            elif spread > SPREAD:
                said.append(f"{who}: the loudest of {group} is {number(spread)} times as loud as the quietest.")
        entropy = {task: mean(run["gate_entropy"].get(task) for run in runs) for task in runs[0]["gate_entropy"]}
        gates += [[who, task, number(value)] for task, value in list(entropy.items())[:MOST]]
        idle = [task for task, value in entropy.items() if value > SLEEPY]
        if idle:
            said.append(f"{who}: the gates of {count(len(idle), 'task')} mix all experts alike ({', '.join(idle[:6])}).")
        highest = [max((v for v in run["occupancy"] if finite(v)), default=float("nan")) for run in runs]
        idle_experts = mean(sum(not finite(v) for v in run["occupancy"]) for run in runs)
        if runs[0]["occupancy"]:
            shared.append([who, str(len(runs[0]["occupancy"])), number(mean(highest)), number(idle_experts)])
        if any(v > OCCUPIED for v in highest):
            said.append(f"{who}: a shared expert belongs to one task for {number(100 * max(highest))} %.")
    text = (
        "Experts fail in three ways: units die (the same value on every row) or one expert drowns the others; a shared expert is "
        "taken over by one task; gates decide alike for every row. Measured on validation rows; means over seeds, the "
        "largest scale spread of all."
    )
    return section(
        "experts",
        "The experts' health",
        tag("p", text),
        bullets(said) if said else tag("p", "Nothing stands out."),
        fold(
            "Experts and gates in figures",
            table("Experts", ["candidate", "group", "dead units, %", "zero activations, %", "scale spread"], groups),
            table("Entropy of a task's gate: 1 mixes all experts alike, 0 takes one", ["candidate", "task", "entropy"], gates),
            table(
                "Shared experts: the largest share one task has of all the weight an expert gets, and experts that nobody uses",
                ["candidate", "shared experts", "highest occupancy", "unused"],
                shared,
            )
            if shared
            else "",
        ),
    )
