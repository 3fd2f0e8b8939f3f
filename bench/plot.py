"""A line chart as SVG."""

from xml.sax.saxutils import escape

WIDTH, HEIGHT = 800, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 50
COLORS = ("#1f6feb", "#d1570a", "#2c8a3d")
TICKS = 5


def _step(largest: float) -> float:
    """A round distance between ticks. About `TICKS` of them reach the largest value."""
    rough, size = largest / TICKS, 1.0
    while size * 10 <= rough:
        size *= 10
    return next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough)


def _text(x: float, y: float, anchor: str, text: str, color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'


def chart(title: str, x_name: str, x: list[float], lines: dict[str, list[float]]) -> str:
    """Draws lines with a value for each of `x`. Both axes begin at zero."""
    largest_x, largest_y = max(x), max(value for line in lines.values() for value in line)
    step_x, step_y = _step(largest_x), _step(largest_y)
    top = step_y * (largest_y // step_y + 1)

    def at(value_x: float, value_y: float) -> tuple[float, float]:
        return (
            LEFT + value_x / largest_x * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - value_y / top * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 20, "start", title),
    ]
    for number in range(round(top / step_y) + 1):
        left, y = at(0, number * step_y)
        parts.append(f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, "end", f"{number * step_y:g}"))
    for number in range(int(largest_x / step_x) + 1):
        x_at, y = at(number * step_x, 0)
        parts.append(_text(x_at, y + 18, "middle", f"{number * step_x:g}"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "middle", x_name))
    for color, (name, values) in zip(COLORS, lines.items(), strict=False):
        points = [at(*point) for point in zip(x, values, strict=True)]
        path = " ".join(f"{point_x:.1f},{point_y:.1f}" for point_x, point_y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(_text(WIDTH - RIGHT, points[-1][1] - 6, "end", name, color))
    return "\n".join([*parts, "</svg>", ""])
