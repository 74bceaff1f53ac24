"""The README.md of a merged folder."""

from mergers.output.summary import MergeSummary

_HEADER = """\
---
{base}library_name: {library}
tags:
- lora
- merge
- sheetbend
---
# {title}

{count} of {base_name}, merged by Sheetbend into {what}:

    {merger}

| adapter | modules | rank | content (sha256) |
| --- | --- | --- | --- |
"""


def model_card(summary: MergeSummary) -> str:
    """Return Markdown that says what was merged, how, and from which contents."""
    full_model = summary.ranks is None
    bases = sorted({str(facts["base_model"]) for facts in summary.adapters if facts["base_model"]})
    lines = [
        _HEADER.format(
            base=f"base_model: {_quoted(bases[0])}\n" if len(bases) == 1 else "",
            library="transformers" if full_model else "peft",
            title="Merged model" if full_model else "Merged LoRA adapter",
            count=f"{len(summary.adapters)} adapter{'s' if len(summary.adapters) > 1 else ''}",
            base_name=" / ".join(f"`{base}`" for base in bases) or "one base model",
            what="a full model" if full_model else "one LoRA adapter",
            merger=summary.merger,
        ).rstrip("\n")
    ]
    for facts in summary.adapters:
        low, high = facts["ranks"]
        rank = str(low) if low == high else f"{low} to {high}"
        name = facts["name"].replace("|", "\\|")
        lines.append(f"| {name} | {facts['modules']} | {rank} | `{facts['content_hash']}` |")
    lines += ["", *_numbers(summary), ""]
    if full_model:
        lines.append("It loads as its base model does: `from_pretrained(folder)`.")
    else:
        lines.append("It loads onto its base model: `PeftModel.from_pretrained(base_model, folder)`.")
    if summary.heads:
        lines += [
            "",
            "Each task keeps the head it was trained with, in `heads/<task>.safetensors`; heads are not merged: "
            + ", ".join(summary.heads),
        ]
    if summary.notes:
        lines += ["", *(f"- {note}" for note in summary.notes)]
    return "\n".join(lines) + "\n"


def _numbers(summary: MergeSummary) -> list[str]:
    """Return what is known of the result's size and exactness."""
    lines = [f"- modules: {len(summary.modules)}", f"- Frobenius norm of the merged update: {summary.norm:.6g}"]
    if summary.ranks is not None:
        low, high = summary.ranks
        lines.append(f"- rank: {low if low == high else f'{low} to {high}'}")
        if summary.settings.get("rank") is None:
            lines.append("- exact: no direction was left out")
        else:
            worst = ", ".join(f"{module} {error:.2%}" for module, error in summary.worst())
            lines.append(
                f"- relative error of the truncation to rank {summary.settings['rank']}: "
                f"{summary.truncation_error:.3%} (largest: {worst})"
            )
    dtype = summary.settings["dtype"] if summary.ranks is not None else "the model's own dtype"
    lines.append(f"- relative error of rounding to {dtype}: {_percent(summary.rounding_error)}")
    return lines


def _percent(error: float) -> str:
    """Return a relative error as it is read at a glance; sheetbend_merge.json has all digits.

    >>> _percent(0.00219), _percent(3e-8), _percent(0.0)
    ('0.219%', 'under 0.001%', 'none')
    """
    if not error:
        return "none"
    return f"{error:.3%}" if error >= 5e-6 else "under 0.001%"


def _quoted(name: str) -> str:
    """Return a name as a YAML string."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
