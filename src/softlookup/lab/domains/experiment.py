"""One watched pass of each of four models; what the strongest key of a query is in each domain."""

from __future__ import annotations

from typing import Any

from softlookup.inspection.findings import THRESHOLDS

from ..figure import THEORY, WITH, WITHOUT
from ..run import Given
from . import chemistry, image, speech, text

SPEECH = 8  # seconds that the figure shows; the last token looks at the silence at 30


def measure(given: Given) -> dict[str, Any]:
    return {name: x for domain in (text, image, speech, chemistry) for name, x in domain.measure(given).items()}


def draw(axes: Any, found: list[dict[str, Any]], control: list[dict[str, Any]]) -> None:
    axes.set_axis_off()
    texts, images, sounds, atoms = (axes.inset_axes([0.265 * n + 0.045, 0.1, 0.17, 0.75]) for n in range(4))
    for results, colour, label in ((control, WITHOUT, "shuffled"), (found, WITH, "as learned")):
        one = results[0]
        texts.plot(*zip(*one["heads"], strict=True), ".", color=colour, ms=3, alpha=0.6)
        for name, place in (("ink", 0), ("accuracy", 1)):
            images.plot([place] * len(results), [each[name] for each in results], "o", color=colour, ms=4, alpha=0.6)
        sounds.plot(one["times"], ".-", color=colour, lw=0.8, ms=4, label=label)
        atoms.plot(*zip(*one["pairs"], strict=True), ".", color=colour, ms=4, alpha=0.7)
    texts.axvline(THRESHOLDS["sink"], color=THEORY, lw=0.8, ls=":")
    texts.axhline(THRESHOLDS["previous_token"], color=THEORY, lw=0.8, ls=":")
    images.plot([-0.3, 0.3], [0.27, 0.27], color=THEORY, lw=0.8, ls=":")
    images.plot([0.7, 1.3], [0.1, 0.1], color=THEORY, lw=0.8, ls=":")
    atoms.axline((0, 0), slope=1, color=THEORY, lw=0.8, ls=":")
    texts.set(title="text", xlabel="weight on first token", ylabel="strongest: token before")
    images.set(title="image", xlim=(-0.5, 1.5), ylim=(0, 1.03), ylabel="share", xticks=(0, 1), xticklabels=("on ink", "named"))
    sounds.set(title="speech", xlabel="token", ylabel="looked at (s)", ylim=(0, SPEECH))
    atoms.set(title="chemistry", xlabel="place of origin", ylabel="place looked at")
    axes.legend(*sounds.get_legend_handles_labels(), frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.06), ncols=2)
    for each in (texts, images, sounds, atoms):
        each.spines[["top", "right"]].set_visible(False)
