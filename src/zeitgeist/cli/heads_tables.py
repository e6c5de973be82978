"""What `zeitgeist inspect heads` prints for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeitgeist.inspection.heads import HeadsReport
    from zeitgeist.inspection.heads_ablate import Ablated
    from zeitgeist.inspection.heads_toy import ToyRun


def tell_scan(report: "HeadsReport", rows: int) -> None:
    """What a scan found, and the heads that differ most between the first domain and the last.

    Parameters
    ----------
    report
        Of the scan.
    rows
        Heads to print.
    """
    for domain in report.domains:
        heads = [row for row in report.heads if row.domain == domain]
        kinds = {
            kind: sum(row.kind == kind for row in heads) for kind in ("dormant", "mixed", "active")
        }
        mean = sum(row.sink_mass for row in heads) / len(heads)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        print(f"{domain}: {len(heads)} heads, {told}; mean sink mass {mean:.2f}")
        for sink in [sink for sink in report.sinks if sink.domain == domain][:5]:
            tokens = " ".join(map(repr, sink.tokens))
            print(f"  sink at {sink.position} in {sink.share:.0%} of windows: {tokens}")
        peaks = [row for row in report.peaks if row.domain == domain and row.sink is not None]
        if peaks:
            top = max(peaks, key=lambda row: (row.sink or 0.0) / row.median)
            print(
                f"  peak behind layer {top.layer}: {top.sink:,.0f}, elsewhere at most "
                f"{top.largest:,.0f}, median {top.median:,.0f}"
            )
        for each in [each for each in report.massive if each.domain == domain][:5]:
            print(
                f"  massive coordinate {each.coordinate}, layers {each.first} to {each.last}: "
                f"{each.value:,.0f} behind layer {each.largest}"
            )
    if rows < 1:
        return
    one, other = report.domains[0], report.domains[-1]
    if one == other:
        shown = sorted(report.heads, key=lambda row: -row.sink_mass)[:rows]
        pairs = [(row.layer, row.head) for row in shown]
    else:
        print(f"\nheads that differ most in sink mass, {one} less {other}")
        pairs = [(layer, head) for layer, head, _, _ in report.gaps(one, other)[:rows]]
    print(f"{'head':>7s}  {'domain':12s} {'sink':>5s} {'+-':>5s} {'logit':>6s} {'value':>6s} "
          f"{'output':>6s} {'row':>5s} {'column':>6s}  class")  # fmt: skip
    for layer, head in pairs:
        for domain in dict.fromkeys((one, other)):
            row = report.row(layer, head, domain)
            name = f"{layer}.{head}"
            print(
                f"{name:>7s}  {domain:12s} {row.sink_mass:5.2f} {row.error:5.2f} "
                f"{_known(row.sink_logit, 1)} {_known(row.value_ratio, 2)} "
                f"{row.output_ratio:6.2f} {row.row_entropy:5.2f} {row.column_entropy:6.2f}  "
                f"{row.kind}"
            )
    print(
        "sink: attention on sinks; logit: theirs less the others'; value: norm there / elsewhere;\n"
        "output: norm / the layer's mean; row, column: entropies, 1 is even"
    )


def _known(value: float | None, digits: int, width: int = 6) -> str:
    return f"{'-':>{width}s}" if value is None else f"{value:{width}.{digits}f}"


def tell_ablated(rows: "list[Ablated]") -> None:
    """A line per ablation and domain."""
    print(f"{'without':20s} {'how':8s} {'domain':12s} {'loss':>7s} {'change (95 %)':>28s} "
          f"{'sink mass':>14s} {'peak / median':>18s}")  # fmt: skip
    for row in rows:
        change = f"{row.change:+.4f}"
        if row.low is not None and row.high is not None:
            change += f" ({row.low:+.4f} to {row.high:+.4f})"
        mass = f"{row.sink_mass[0]:.3f} -> {row.sink_mass[1]:.3f}"
        peak = "-" if row.peak is None else f"{row.peak[0]:.1f} -> {row.peak[1]:.1f}"
        print(f"{row.part:20s} {row.how:8s} {row.domain:12s} {row.loss:7.4f} {change:>28s} "
              f"{mass:>14s} {peak:>18s}")  # fmt: skip


def tell_toy(run: "ToyRun") -> None:
    """A line per record."""
    print(f"triggers: {' '.join(repr(run.table.characters[i]) for i in run.triggers) or 'none'}")
    print(
        f"{'step':>7s} {'copy':>8s} {'excess':>7s} {'layer':>5s} {'idle':>5s} {'trigger':>7s} "
        f"{'logit':>6s} {'value':>6s}  residual norms, first token / others"
    )
    for record in run.records:
        own = record.layers[record.copying_layer]
        value = None
        if own.value_first is not None and own.value_others:
            value = own.value_first / own.value_others
        norms = "  ".join(f"{x.stream_first:.1f}/{x.stream_others:.1f}" for x in record.layers)
        print(
            f"{record.step:7d} {_known(record.copy_loss, 4, 8)} "
            f"{_known(record.bigram_excess, 3, 7)} {record.copying_layer:5d} "
            f"{_known(own.sink_idle, 2, 5)} {_known(own.sink_trigger, 2, 7)} "
            f"{_known(own.sink_logit, 1)} {_known(value, 2)}  {norms}"
        )
    print(
        "copy: loss after triggers; excess: loss elsewhere above the best; idle, trigger:\n"
        "attention on the first token; logit, value: the first token's against the others'"
    )
