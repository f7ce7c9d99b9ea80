"""A loss curve as an SVG picture that needs nothing to be shown, on light and dark pages."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 36, 40  # margins

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #5b6270; } .title { font-weight: 600; }
line { stroke: #8a909c; stroke-opacity: .35; } .train { fill: none; stroke: #3e63dd; stroke-width: 1.6; }
.held-out { fill: #e5484d; } .ln { stroke: #8a909c; stroke-opacity: 1; stroke-dasharray: 5 4; }
"""


def loss_curve(title: str, losses: Mapping[int, float], held_out: Mapping[int, float], vocab_size: int) -> str:
    """The picture: loss in nats per token over steps, held-out losses as dots, and ln(vocabulary), where a model that
    knows nothing starts."""
    start = math.log(vocab_size)
    values = [*losses.values(), *held_out.values(), start]
    low, high = math.floor(min(values)), math.ceil(max(values))
    last = max(losses)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(loss: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low), 1)

    marks = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(loss)}" y2="{y(loss)}"/>'
        f'<text x="{LEFT - 10}" y="{y(loss) + 4}" text-anchor="end">{loss}</text>'
        for loss in range(low, high + 1)
    ]
    marks += [
        f'<text x="{x(step)}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{step}</text>'
        for step in range(0, last + 1, _spacing(last))
    ]
    marks.append(f'<line class="ln" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(start)}" y2="{y(start)}"/>')
    marks.append(f'<text x="{WIDTH - RIGHT}" y="{y(start) - 6}" text-anchor="end">ln(vocabulary) {start:.2f}</text>')
    points = " ".join(f"{x(step)},{y(losses[step])}" for step in sorted(losses))
    marks.append(f'<polyline class="train" points="{points}"/>')
    marks += [f'<circle class="held-out" cx="{x(step)}" cy="{y(loss)}" r="3.5"/>' for step, loss in held_out.items()]
    legend = "loss in nats per token over steps; dots: text never trained on" if held_out else "loss over steps"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n<style>{STYLE}</style>\n'
        f'<text class="title" x="{LEFT}" y="20">{html.escape(title)}</text>'
        f'<text x="{WIDTH - RIGHT}" y="20" text-anchor="end">{legend}</text>\n' + "\n".join(marks) + "\n</svg>\n"
    )


def _spacing(last: int) -> int:
    """1, 2 or 5 times a power of ten that gives four to ten labels."""
    for spacing in (factor * 10**power for power in range(10) for factor in (1, 2, 5)):
        if last / spacing <= 10:
            return spacing
    raise ValueError(last)
