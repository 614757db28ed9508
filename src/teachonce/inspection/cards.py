"""Cards of a store's page: a picture with what was done to it, its label, and what the teacher said.

Whether the teacher agrees is said by a mark and by words, never by colour alone; every picture has a text in its place.
Whatever comes from the data (class names, file names) is escaped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teachonce.inspection.gallery import Gallery, SeenView, describe_view, format_share, shrink
from teachonce.inspection.measures import Suspect
from teachonce.pages.page import escape, picture_uri

SHOWN_PX = 160
"""Longest side of a picture on the page."""

CARD_STYLE = f"""
.cards {{ display: grid; gap: 0.9rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22.5rem), 1fr)); }}
.card {{ display: flex; gap: 0.9rem; border: 1px solid var(--line); border-radius: 8px; padding: 0.7rem;
  min-width: 0; background: var(--card); }}
.card figure, .brief figure {{ margin: 0; flex: none; }}
.card figure.whole {{ width: {SHOWN_PX}px; }}
.card img, .brief img {{ display: block; border-radius: 3px; max-width: 100%; height: auto; }}
img.exact {{ image-rendering: pixelated; }}
.said {{ flex: 1; min-width: 0; }}
.said p {{ margin: 0 0 0.35rem; line-height: 1.3; }}
.names {{ display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }}
.clip {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.mark {{ font-weight: 700; }} .good {{ color: var(--good); }} .bad {{ color: var(--bad); }}
.small {{ color: var(--quiet); font-size: 0.78rem; line-height: 1.35; overflow-wrap: anywhere; }}
ol.top {{ list-style: none; margin: 0.3rem 0 0.5rem; padding: 0; font-size: 0.82rem; }}
ol.top li {{ display: flex; gap: 0.5rem; padding: 0.06rem 0.35rem; margin-bottom: 2px; border-radius: 3px;
  --bar: color-mix(in srgb, var(--quiet) 30%, transparent);
  background: linear-gradient(to right, var(--bar) var(--part), transparent var(--part)); }}
ol.top li.label {{ --bar: color-mix(in srgb, var(--good) 38%, transparent); font-weight: 600; }}
ol.top li.wrong {{ --bar: color-mix(in srgb, var(--bad) 30%, transparent); }}
ol.top li.rest {{ border-top: 1px dashed var(--line); }}
ol.top .names {{ display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }}
.clip {{ flex: 1; }}
.prob {{ font-variant-numeric: tabular-nums; }}
.strip {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax({SHOWN_PX}px, 1fr)); }}
.brief figure {{ margin-bottom: 0.4rem; }}
.brief p {{ margin: 0; font-size: 0.85rem; line-height: 1.35; }}
.brief p.small {{ font-size: 0.78rem; }}
.place {{ white-space: nowrap; }}
@media (max-width: 26rem) {{ .card {{ gap: 0.7rem; }} .card figure, .card figure.whole {{ width: 112px; }} }}
"""


def render_view(seen: SeenView, gallery: Gallery) -> str:
    """A stored view: picture, labels, the teacher's likeliest classes as bars, and what was done."""
    return f"""<article class="card">{_render_picture(seen, gallery)}<div class="said">
<p class="names" title="{escape(_label_text(seen, gallery))}">{_render_mark(seen, gallery)}
{_render_labels(seen, gallery)}</p>
{_render_top(seen, gallery)}
{_render_steps(seen, gallery)}
<p class="small">{escape(seen.filename)} {_render_place(gallery, seen.shard, seen.row)}</p></div></article>"""


def render_view_briefly(seen: SeenView, gallery: Gallery) -> str:
    """A stored view among others of the same record: picture, the teacher's choice, and what was done."""
    choice, prob = seen.top[0]
    labels = f"<p>label {_render_labels(seen, gallery)}</p>" if len(seen.labels) > 1 else ""
    return f"""<article class="brief">{_render_picture(seen, gallery)}
<p class="clip" title="{escape(gallery.class_text(choice))}">{_render_mark(seen, gallery)}
<span class="prob">{prob:.0%}</span> {escape(gallery.class_text(choice))}</p>{labels}
{_render_steps(seen, gallery)}</article>"""


def render_record_briefly(pixels: NDArray[np.uint8] | None, label: str, filename: str) -> str:
    """The whole record before its views; nothing without the records."""
    if pixels is None:
        return ""
    image = _render_image(pixels, f"{filename}, the whole image: label {label}")
    return f"""<article class="brief"><figure>{image}</figure><p class="clip">{escape(label)}</p>
<p class="small">the whole image</p></article>"""


def render_suspect(number: int, suspect: Suspect, filename: str, gallery: Gallery) -> str:
    """A record whose label the teacher contradicts: picture, and both classes with their mean probabilities."""
    label, choice = gallery.class_text(suspect.label), gallery.class_text(suspect.choice)
    pixels = gallery.read_record(suspect.shard, suspect.row)
    figure = ""
    if pixels is not None:
        alt = f"{filename}, the whole image: label {label}, the teacher says {choice}"
        figure = f'<figure class="whole">{_render_image(pixels, alt)}</figure>'
    bars = _render_bar(choice, suspect.choice_prob, "wrong") + _render_bar(label, suspect.label_prob, "label")
    views = "1 view" if suspect.num_views == 1 else f"{suspect.num_views} views"
    return f"""<article class="card">{figure}<div class="said">
<p class="names" title="{escape(label)}">{number}. labelled <b>{escape(label)}</b></p>
<ol class="top">{bars}</ol>
<p class="small">{-suspect.margin:.1f} nats apart in the mean of {views}</p>
<p class="small">{escape(filename)} {_render_place(gallery, suspect.shard, suspect.row)}</p></div></article>"""


def _render_picture(seen: SeenView, gallery: Gallery) -> str:
    if seen.pixels is None:
        return ""
    choice, prob = seen.top[0]
    alt = (
        f"{seen.filename} as the teacher saw it in view {seen.number}: label {_label_text(seen, gallery)}, "
        f"the teacher says {gallery.class_text(choice)} with {prob:.0%}"
    )
    return f"<figure>{_render_image(seen.pixels, alt)}</figure>"


def _render_image(pixels: NDArray[np.uint8], alt: str) -> str:
    """At most SHOWN_PX; a small picture is enlarged by a whole factor, so that each of its pixels is a square."""
    pixels = shrink(pixels)
    height, width = pixels.shape[:2]
    factor = SHOWN_PX // max(width, height) or SHOWN_PX / max(width, height)
    kind = ' class="exact"' if factor > 1 else ""
    return (
        f'<img{kind} src="{picture_uri(pixels)}" alt="{escape(alt)}" width="{round(width * factor)}" '
        f'height="{round(height * factor)}">'
    )


def _render_mark(seen: SeenView, gallery: Gallery) -> str:
    if seen.is_agreed:
        return '<span class="mark good" title="the teacher agrees" role="img" aria-label="agrees">✓</span>'
    says = escape(gallery.class_text(seen.top[0][0]))
    return f'<span class="mark bad" title="the teacher says {says}" role="img" aria-label="disagrees">✗</span>'


def _render_labels(seen: SeenView, gallery: Gallery) -> str:
    if len(seen.labels) == 1:
        return f"<b>{escape(gallery.class_text(seen.label))}</b>"
    return " + ".join(
        f"{escape(format_share(share))} <b>{escape(gallery.class_text(label))}</b>" for label, share in seen.labels
    )


def _label_text(seen: SeenView, gallery: Gallery) -> str:
    if len(seen.labels) == 1:
        return gallery.class_text(seen.label)
    return " + ".join(f"{format_share(share)} {gallery.class_text(label)}" for label, share in seen.labels)


def _render_top(seen: SeenView, gallery: Gallery) -> str:
    labels = {label for label, _ in seen.labels}
    kinds = ["" if index else "wrong" for index in range(len(seen.top))]
    lines = [
        _render_bar(gallery.class_text(label), prob, "label" if label in labels else kind)
        for (label, prob), kind in zip(seen.top, kinds, strict=True)
    ]
    if seen.label not in dict(seen.top):
        text = gallery.class_text(seen.label)
        if seen.label_prob is None:
            lines.append(f'<li class="rest"><span class="clip">{escape(text)}: no class of the teacher</span></li>')
        else:
            lines.append(_render_bar(text, seen.label_prob, "label rest"))
    return f'<ol class="top">{"".join(lines)}</ol>'


def _render_bar(text: str, prob: float, kind: str) -> str:
    shown = f"{prob:.3f}" if prob >= 0.0005 else f"{prob:.0e}"
    return (
        f'<li class="{kind}" style="--part:{prob:.1%}"><span class="clip" title="{escape(text)}">{escape(text)}</span>'
        f'<span class="prob">{shown}</span></li>'
    )


def _render_steps(seen: SeenView, gallery: Gallery) -> str:
    steps = [f"view {seen.number}", *describe_view(seen, gallery)]
    if seen.view is None and gallery.store.num_views == 1:
        return ""  # nothing was drawn, and every card would say the same
    return f'<p class="small">{"; ".join(escape(step) for step in steps)}</p>'


def _render_place(gallery: Gallery, shard: int, row: int) -> str:
    return f'<span class="place">{escape(gallery.store.shards[shard][0])} row {row}</span>'
