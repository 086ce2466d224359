"""The page in a real browser: what it shows of an answer, and what people do with it."""

from __future__ import annotations

import base64
import io
import itertools
import random
import re
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from qwenvl_jax.data import tags
from qwenvl_jax.data.pointing import regions_of
from qwenvl_jax.serving.api import ApiSettings
from qwenvl_jax.serving.dialogue import pictures_meant
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.examples import ExampleQuestion
from tests.evaluation.samples import grey as picture
from tests.support.api_server import data_url, post, question, serving, wait_for
from tests.support.browser import SCRIPTED, Open, answer_with, ask, needs_chromium, show_pictures, until, wait_for_end

pytestmark = needs_chromium

KEY = "a-key-of-a-test-0123456789"

PIECES = (
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "dog", " ", "\n", ",", "(1,2)", "(3,4)", "(1000,0)"),
    *("(1,2),(3,4)", "(5,6),(7,8)", "(1,2),(3,4),(5,6),(7,8)", "<ref>a cat</ref>", "<box>(1,2),(30,40)</box>", "<"),
    *("<quad>(1,2),(3,4),(5,6),(7,8)</quad>", "(1001,2)", " ( 1 , 2 ) , (3,4)", "<img>", "</img>", "<|im_end|>", "狗"),
)


def python_reading(text: str) -> list[list[Any]]:
    """References with boxes, then references with quadrilaterals, as the server reads them."""
    boxes = [[ref, [list(box) for box in shapes]] for ref, shapes in tags.parse_boxes(text)]
    quads = [[ref, [[list(point) for point in quad] for quad in shapes]] for ref, shapes in tags.parse_quads(text)]
    return [boxes, quads]


def test_the_page_reads_answers_as_the_server_does(open_page: Open) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 9))) for _ in range(400)]
    texts += [
        "<ref>a</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box> and <ref>b</ref><quad>(1,2),(3,4),(5,6),(7,8)</quad>"
    ]
    read = open_page().evaluate(
        """async (texts) => {
          const { parse } = await import("/page/answer.js");
          return texts.map((text) => parse(text).groups.map((group) => [group.ref, group.read]));
        }""",
        texts,
    )
    for text, groups in zip(texts, read, strict=True):
        boxes, quads = python_reading(text)
        flat = [(ref, shape) for ref, shapes in [*boxes, *quads] for shape in shapes]
        shown = [(ref, shape) for ref, shapes in groups for shape in shapes]
        assert sorted(map(repr, shown)) == sorted(map(repr, flat)), text


def test_a_chat_with_a_model(open_page: Open, page_url: str) -> None:
    page = open_page()
    assert page.text_content("#model") == "tiny, step 3"
    images = [picture(64, 32), picture(32, 64)]
    ask(page, "Where?", *images)
    wait_for_end(page)
    status, _, body = post(page_url, question("Where?", *map(data_url, images), max_tokens=512))
    assert status == 200
    said = tags.normal_form(body["choices"][0]["message"]["content"])
    shown = page.text_content(".assistant .text")
    assert re.sub(r"\s+", "", page.evaluate("words => import('/page/answer.js').then(m => m.words(words))", said)) == (
        re.sub(r"\s+", "", shown).replace("(noanswer)", "")
    )
    assert page.locator(".user .seen").count() == 2 and not page.is_visible("#welcome")
    ask(page, "And now?")
    wait_for_end(page, 2)
    assert page.locator(".assistant .after").nth(0).locator("button").count() <= 1, "only the last can be asked again"
    page.locator(".assistant").nth(1).get_by_text("Another answer").click()
    wait_for_end(page, 2)
    page.click("#new")
    assert page.is_visible("#welcome") and page.locator(".turn").count() == 0


def test_regions_are_drawn_in_the_colours_of_their_words(open_page: Open) -> None:
    page = open_page()
    answer_with(
        page,
        "There is <ref>a dog</ref><box>(100,200),(500,800)</box><box>(0,0),(50,1000)</box> and ",
        "<ref>a <b>cat</b></ref><box>(600,10),(990,400)</box>, ",
        "<ref>EXIT</ref><quad>(10,20),(200,30),(190,90),(5,80)</quad>.",
    )
    ask(page, "What?", picture(50, 50), picture(200, 100))
    wait_for_end(page)
    assert page.text_content(".assistant .text") == "There is a dog and a <b>cat</b>, EXIT."
    regions = page.locator(".assistant .region")
    assert [regions.nth(k).get_attribute("points") for k in range(4)] == [
        "100,200 500,200 500,800 100,800",
        "0,0 50,0 50,1000 0,1000",
        "600,10 990,10 990,400 600,400",
        "10,20 200,30 190,90 5,80",
    ]
    colour = "element => getComputedStyle(element).getPropertyValue('--c')"
    words = [page.locator(".assistant .ref").nth(k).evaluate(colour) for k in range(3)]
    drawn = [regions.nth(k).evaluate(colour) for k in range(4)]
    assert drawn == [words[0], words[0], words[1], words[2]] and len(set(words)) == 3
    size = page.locator(".assistant .seen").bounding_box()
    assert abs(size["width"] / size["height"] - 2) < 0.05, "it is drawn on the picture that was shown last"
    assert page.locator(".assistant .tag").all_text_contents() == ["a dog", "a <b>cat</b>", "EXIT"]
    page.locator(".assistant .ref").nth(1).hover()
    assert page.locator(".assistant g.faint").count() == 2, "the other regions are dimmed"
    page.locator(".assistant .seen").click()
    assert page.locator("dialog[open] .region").count() == 4
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_regions_are_drawn_on_the_picture_that_is_meant(open_page: Open) -> None:
    page = open_page()
    box = "<box>(100,200),(500,800)</box>"
    answer_with(page, f"<ref>a dog</ref>{box}, in Picture 2 <ref>a cat</ref>{box}{box}")
    ask(page, "Where in picture 1?", picture(50, 50), picture(200, 100))
    wait_for_end(page)
    seen = page.locator(".assistant .seen")
    assert [seen.nth(k).locator(".region").count() for k in range(seen.count())] == [1, 2]
    size = seen.nth(1).bounding_box()
    assert abs(size["width"] / size["height"] - 2) < 0.05
    rng = random.Random(0)
    words = ("Picture 1", "picture2", "图3", "图片 1", "Images 2", "epicture 1", "Picture 0", "image 12", box, " ")
    dialogues: list[list[Any]] = [
        [["".join(rng.choices(words, k=3)), rng.randrange(3)] for _ in range(rng.randint(1, 4))] for _ in range(200)
    ]
    meant = page.evaluate(
        """async (dialogues) => {
          const { byPicture, parse, pictureMeant } = await import("/page/answer.js");
          return dialogues.map((turns) => {
            const chat = turns.map(([text, pictures]) => ({ text, pictures: Array(pictures).fill({}) }));
            const shown = chat.flatMap((turn) => turn.pictures);
            const text = turns[0][0];
            const about = pictureMeant(chat);
            const drawn = byPicture(text, parse(text).groups, about, shown);
            return [about, [...drawn].flatMap(([k, groups]) => groups.map((group) => [group.number, k])).sort()];
          });
        }""",
        dialogues,
    )
    for dialogue, (about, drawn) in zip(dialogues, meant, strict=True):
        count = itertools.count()
        turns = [
            {"role": "user", "parts": [*({"image": next(count)} for _ in range(pictures)), {"text": text}]}
            for text, pictures in dialogue
        ]
        shown = sum(pictures for _, pictures in dialogue)
        assert pictures_meant(turns, 0) == (about, range(shown)), dialogue
        regions = regions_of(dialogue[0][0], [(1000, 1000)] * max(shown, 1), about, range(shown))
        assert [image for _, image in drawn] == [region["image"] for region in regions], dialogue


def test_nothing_that_a_model_writes_becomes_part_of_the_page(open_page: Open) -> None:
    page = open_page()
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script><a href='javascript:alert(3)'>x</a>"
    answer_with(page, f"{hostile}<ref>{hostile}</ref><box>(1,1),(9,9)</box>", "<style>*{display:none}</style>")
    ask(page, hostile, picture())
    wait_for_end(page)
    assert page.locator(".turn script, .turn a, .turn style, .text img").count() == 0
    assert page.locator(".user .text").text_content() == hostile
    assert "alert(2)" in page.locator(".assistant .text").text_content()
    assert page.evaluate("document.querySelectorAll('script').length") == 1


def test_an_answer_can_be_stopped_and_asked_again(open_page: Open, page_engine: Engine) -> None:
    page = open_page()
    page.click("#options summary")
    page.fill("#temperature", "1.5")
    page.keyboard.press("Escape")
    before = page_engine.status().finished.get("cancelled", 0)
    for _ in range(20):  # an answer may end before it is stopped, or before the engine hears of it
        ask(page, "Go on.")
        until(
            page,
            "document.querySelector('.assistant:last-child .text').textContent"
            " || !document.querySelector('[aria-busy]')",
        )
        page.keyboard.press("Escape")
        until(page, "!document.querySelector('[aria-busy]')")
        wait_for(lambda: not page_engine.status().active)
        if page_engine.status().finished.get("cancelled", 0) > before and page.get_by_text("Stopped.").count():
            break
    assert page_engine.status().finished.get("cancelled", 0) > before
    assert page.get_by_text("Stopped.").count()
    assert page.is_visible("#send") and not page.is_visible("#stop")


def test_failures_are_shown_and_can_be_tried_again(open_page: Open) -> None:
    page = open_page()
    error = {"error": {"message": "too many questions wait already; ask again later"}}
    page.route(SCRIPTED, lambda route: route.fulfill(status=429, json=error))
    ask(page, "What?")
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").text_content() == error["error"]["message"]
    page.unroute(SCRIPTED)
    page.route(SCRIPTED, lambda route: route.abort())
    page.get_by_text("Try again").click()
    page.get_by_text("The server cannot be reached.").first.wait_for()
    page.unroute(SCRIPTED)
    answer_with(page, "All is well", reason="length", forgotten=2)
    page.get_by_text("Try again").click()
    page.get_by_text("All is well").wait_for()
    wait_for_end(page)
    assert page.get_by_text("Cut off at the longest answer.").count()
    assert page.get_by_text("the first 2 questions were left out").count()
    assert page.locator(".user").count() == 1


DROP = """(kind) => {
  const bytes = Uint8Array.from(atob(document.body.dataset.png), (sign) => sign.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], "a.png", { type: "image/png" }));
  const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: carried, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


def test_pictures_can_be_dropped_pasted_and_removed(open_page: Open) -> None:
    page = open_page()
    encoded = data_url(picture(30, 20)).partition(",")[2]
    page.evaluate("encoded => { document.body.dataset.png = encoded; }", encoded)
    page.evaluate(DROP, "dragover")
    assert page.is_visible("#drop")
    page.evaluate(DROP, "drop")
    page.evaluate(DROP, "paste")
    until(page, "document.querySelectorAll('#shown img').length === 2")
    assert not page.is_visible("#drop")
    page.get_by_role("button", name="Remove Picture 1").click()
    assert page.locator("#shown img").count() == 1
    page.set_input_files("#files", {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.get_by_text("notes.png is not a picture").wait_for()


def test_a_photograph_that_a_camera_has_turned_is_sent_upright(open_page: Open, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (60, 30), (200, 30, 30)).save(tmp_path / "turned.jpg", exif=exif)
    page = open_page()
    sent: list[Any] = []
    page.on("request", lambda asked: sent.append(asked.post_data_json) if asked.method == "POST" else None)
    answer_with(page, "yes")
    page.set_input_files("#files", str(tmp_path / "turned.jpg"))
    page.wait_for_selector("#shown img")
    ask(page, "Upright?")
    wait_for_end(page)
    address = sent[0]["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        assert image.size == (30, 60) and 0x0112 not in image.getexif()


def test_examples_are_asked_with_one_click(open_page: Open) -> None:
    page = open_page()
    answer_with(page, "Here.")
    example = page.locator("#example-list button")
    assert example.text_content() == "Where is the square?" and example.locator("img").count() == 2
    example.click()
    wait_for_end(page)
    assert page.locator(".user .seen").count() == 2


def test_chinese(open_page: Open) -> None:
    page = open_page(locale="zh-CN")
    assert page.text_content("#welcome h2") == "看图提问" and page.get_attribute("html", "lang") == "zh"
    page.click("#language")
    assert page.text_content("#welcome h2") == "Ask about a picture" and page.get_attribute("html", "lang") == "en"
    page.click("#language")
    answer_with(page, "一只狗")
    ask(page, "这是什么？")
    page.get_by_text("换一个回答").wait_for()
    keys = page.evaluate("import('/page/words.js').then(() => 1)")
    assert keys == 1


def test_it_is_used_by_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    answer_with(page, "It is <ref>a dog</ref><box>(100,200),(500,800)</box>")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    show_pictures(page, picture())
    page.focus("#question")
    page.keyboard.press("Enter")
    wait_for_end(page)
    assert page.text_content(".user .text") == "one\ntwo"
    assert page.evaluate("document.activeElement.id") == "question"
    reached: set[str] = set()
    for _ in range(14):
        page.keyboard.press("Shift+Tab")
        reached.add(page.evaluate("document.activeElement.className || document.activeElement.id"))
    assert {"ref", "seen", "new", "language"} <= {name.split()[0] for name in reached if name}


def test_a_key_is_asked_for_and_then_used(open_page: Open, page_engine: Engine) -> None:
    settings = ApiSettings("tiny", has_page=True, keys=(KEY.encode(),), examples=(ExampleQuestion("A?", (picture(),)),))
    with serving(page_engine, settings) as (address, _):
        page = open_page(address)
        page.get_by_role("textbox", name="Key").fill("wrong-key-of-a-test-01234")
        page.get_by_role("textbox", name="Key").press("Enter")
        ask(page, "Hello?")
        page.get_by_text("the key is missing or wrong").first.wait_for()
        page.get_by_role("textbox", name="Key").fill(KEY)
        page.get_by_role("textbox", name="Key").press("Enter")
        until(page, "!document.querySelector('[role=alert]')")
        wait_for_end(page)
        assert page.get_by_role("alert").count() == 0 and page.locator(".user").count() == 1
        assert KEY not in page.content()
        page.close()


def test_the_page_is_guarded(page_url: str, page_engine: Engine) -> None:
    response = httpx.get(page_url)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    folder = Path(__file__).parents[2] / "qwenvl_jax/serving/page"
    for file in folder.iterdir():
        text = file.read_text() if file.is_file() else ""
        assert (
            "innerHTML" not in text and "http://" not in text.replace("http://www.w3.org", "") and "//cdn" not in text
        )
        assert " style=" not in text and "onclick=" not in text
    with serving(page_engine, ApiSettings("tiny")) as (without, _):
        assert httpx.get(without).status_code == 404
