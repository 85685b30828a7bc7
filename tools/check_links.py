"Check the built site: every link and image leads to a file and an anchor that exist, and no page needs the network to be drawn."
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
FOLLOWED = LOADS | {("a", "href")}
NOT_LOADED = {"canonical", "alternate", "prev", "next"}


class Page(HTMLParser):
    "What one page links to, loads, and can be linked at."

    def __init__(self, text: str):
        super().__init__()
        self.links: list[tuple[str, bool]] = []
        self.anchors: set[str] = set()
        self.no_alt = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        got = dict(attrs)
        self.anchors |= {got[k] for k in ("id", "name") if got.get(k)}
        self.no_alt += tag == "img" and "alt" not in got
        for key, value in attrs:
            if (tag, key) in FOLLOWED and value is not None:
                loads = (tag, key) in LOADS and not (tag == "link" and NOT_LOADED & set((got.get("rel") or "").split()))
                self.links.append((value, loads))


def check(site: Path) -> list[str]:
    "Problems of the built site, one line each."
    pages = {p.resolve(): Page(p.read_text(encoding="utf8")) for p in sorted(site.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        for link, loads in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("data", "mailto"):
                if parts.scheme == "data" and len(link) < 64:
                    problems.append(f"{where}: empty image {link!r}")
            elif parts.scheme or parts.netloc:
                if loads:
                    problems.append(f"{where}: loads {link} from the network")
            else:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                if target.is_dir():
                    target = target / "index.html"
                if not target.is_file():
                    problems.append(f"{where}: {link} leads to no file")
                elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                    problems.append(f"{where}: {link} leads to no anchor")
    return problems


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "_docs")
    pages = list(site.rglob("*.html"))
    problems = check(site)
    for problem in problems:
        print("link: " + problem, file=sys.stderr)
    print(f"{len(pages)} pages checked, {len(problems)} broken links or images")
    return 1 if problems or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
