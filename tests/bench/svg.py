"""As much of SVG as the pictures need: boxes, lines, dots, words. Text stays text; numbers are rounded, so that the same picture is
the same file."""
from html import escape

FONT = "system-ui, sans-serif"


def number(value):
    return f"{value:.1f}".rstrip("0").rstrip(".")


def plain_number(value):
    return f"{value:g}" if value < 1 else f"{value:,.0f}"


def log_ticks(low, high, base):
    """Powers of base from low to high."""
    tick, ticks = 1.0, []
    while tick > low:
        tick /= base
    while tick <= high * 1.001:
        if tick >= low * 0.999:
            ticks.append(tick)
        tick *= base
    return ticks


class Picture:
    def __init__(self, width, height):
        self.width, self.height, self.parts = width, height, []

    def add(self, tag, inside="", **attributes):
        text = "".join(f' {k.replace("_", "-")}="{number(v) if isinstance(v, float) else escape(str(v))}"' for k, v in attributes.items()
                       if v is not None)
        self.parts.append(f"<{tag}{text}>{inside}</{tag}>" if inside else f"<{tag}{text}/>")

    def box(self, x, y, width, height, colour, opacity=None, tip=None):
        self.add("rect", f"<title>{escape(tip)}</title>" if tip else "", x=float(x), y=float(y), width=float(width), height=float(height),
                 fill=colour, fill_opacity=None if opacity is None else str(opacity))

    def line(self, x1, y1, x2, y2, colour, width, dashed=False):
        self.add("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), stroke=colour, stroke_width=str(width),
                 stroke_dasharray="4 3" if dashed else None)

    def path(self, points, colour, width, dashed=False):
        self.add("polyline", points=" ".join(f"{number(x)},{number(y)}" for x, y in points), fill="none", stroke=colour,
                 stroke_width=str(width), stroke_dasharray="4 3" if dashed else None)

    def dot(self, x, y, radius, colour):
        self.add("circle", cx=float(x), cy=float(y), r=float(radius), fill=colour, stroke="#fff", stroke_width="1")

    def text(self, x, y, words, anchor=None, size=12, colour="#222", bold=False):
        self.add("text", escape(words), x=float(x), y=float(y), text_anchor=anchor, font_size=size, fill=colour,
                 font_weight="bold" if bold else None)

    def title(self, words, below):
        self.text(16, 24, words, size=16, bold=True)
        self.text(16, 42, below, size=11, colour="#666")

    def legend(self, x, y, entries):
        for words, colour in entries:
            self.box(x, y - 9, 10, 10, colour)
            self.text(x + 15, y, words, size=11)
            x += 30 + 6.4 * len(words)

    def svg(self):
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{number(self.height)}" '
                f'viewBox="0 0 {self.width} {number(self.height)}" font-family="{FONT}">')
        return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *self.parts, "</svg>", ""])
