"""mcq-robust in other languages: the sentences of MMLU-ProX's prompts, natural variants, cues."""

import re
import unicodedata

import pytest

from adaptsft.evals.graders import choice, mmlu_prox

# (what is read as the letter L, what is read as nothing); L and M stand for two letters
SEVEN = {
    "mr": (
        "उत्तर L आहे|उत्तर: L|योग्य उत्तर L आहे.|बरोबर उत्तर (L) आहे|योग्य पर्याय L आहे|म्हणून उत्तर आहे पर्याय L|पर्याय L बरोबर आहे|L हे योग्य उत्तर आहे",
        "उत्तर L नाही|उत्तर L किंवा M आहे|उत्तर आहे L आणि M|पर्याय L चुकीचा आहे|मला माहित नाही",
    ),
    "ne": (
        "उत्तर L हो|उत्तर: L|सही उत्तर L हो।|सही विकल्प (L) हो।|उत्तर विकल्प L हो|त्यसैले, उत्तर L हो ।|विकल्प L सही छ|L सही उत्तर हो।",
        "उत्तर L होइन|उत्तर L वा M हो।|उत्तर L र M हो।|विकल्प L गलत छ|मलाई थाहा छैन",
    ),
    "sw": (
        "Jibu: L|Jibu sahihi ni L.|Jibu langu ni (L)|Kwa hiyo, jibu ni L.|Chaguo sahihi ni L|Jibu ni Chaguo L|L ni jibu sahihi|Chaguo L ni sahihi|Jibu ni L kwa sababu ni kubwa|Jibu si M bali L",
        "Jibu si L|Jibu sio L|Jibu ni L au M|Jibu ni L na M|Chaguo L si sahihi|Sijui",
    ),
    "te": (
        "సమాధానం: L|సరైన సమాధానం L|సరైన సమాధానం (L).|సరైన ఎంపిక L|జవాబు L|కాబట్టి సమాధానం L|L సరైన సమాధానం|సమాధానం ఎంపిక L",
        "సమాధానం L కాదు|సమాధానం L లేదా M|సమాధానం L మరియు M|ఎంపిక L తప్పు|నాకు తెలియదు",
    ),
    "wo": (
        "Tontu: L|Tontu bi mooy: L|Tontu bi L la|Tontu bi baax mooy L|Kon tontu bi mooy (L).|Tànneef bi mooy L|L mooy tontu bi|Tontu bi du M waaye L",
        "Tontu bi du L|Tontu bi mooy L walla M|Tontu bi mooy L ak M|Xamuma",
    ),
    "yo": (
        "Ìdáhùn: L|Ìdáhùn ni L|Ìdáhùn tó tọ́ ni L|Ìdáhùn tí ó tọ́ ni (L).|Nítorí náà, ìdáhùn náà ni L|Àṣàyàn tó tọ́ ni L|L ni ìdáhùn náà|Idahun naa ni L",
        "Ìdáhùn náà kì í ṣe L|Ìdáhùn náà ni L tàbí M|Ìdáhùn náà ni L àti M|Mi ò mọ̀|Ẹ jẹ́ ká ronú|Ó dára",
    ),
    "zu": (
        "Impendulo: L|Impendulo ngu-L|Impendulo efanele ithi L|Impendulo eyiyo ngu-L.|Ngakho-ke impendulo ithi (L)|Inketho efanele ithi L|L yimpendulo efanele|Impendulo ithi u-L",
        "Impendulo akuyona L|Impendulo ithi L noma M|Impendulo ithi L no-M|Angazi",
    ),
}  # fmt: skip
OTHERS = {
    "Arabic": "الإجابة الصحيحة هي L|الجواب: L",
    "Bengali": "সঠিক উত্তর হল L|উত্তর: L",
    "Chinese": "答案：L|正确答案是 L。|答案为（L）|故选L。|所以选择L|应选 L|选项L正确。|不是M，而是L",
    "Dutch": "Het juiste antwoord is L.|Antwoord: L",
    "French": "La bonne réponse est L.|Réponse : L|La réponse correcte est la L.",
    "German": "Antwort: L|Die Antwort ist (L).|Antwort L ist richtig.|Nicht M, sondern L.",
    "Greek": "Απάντηση: L|Η σωστή απάντηση είναι L.",
    "Hindi": "सही उत्तर L है।|उत्तर: L",
    "Indonesian": "Jawaban: L|Jawaban yang benar adalah L.",
    "Italian": "La risposta corretta è L.|Risposta: L|La risposta è la L.",
    "Japanese": "答えはLです。|正解：L|正解は L です",
    "Korean": "정답: L|정답은 (L)입니다.|답은 L입니다",
    "Persian": "پاسخ: L|پاسخ صحیح L است",
    "Polish": "Poprawna odpowiedź to L.|Odpowiedź: L",
    "Portuguese": "A resposta correta é a letra L.|Resposta: L|A resposta é L.",
    "Russian": "Ответ: L|Правильный ответ — L.",
    "Spanish": "La respuesta correcta es L.|Respuesta: L|La respuesta es la opción L.|La opción L es la correcta.",
    "Swedish": "Rätt svar är L.|Svar: L",
    "Tamil": "சரியான பதில் L|பதில்: L",
    "Thai": "คำตอบคือ L|คำตอบที่ถูกต้องคือ L",
    "Turkish": "Doğru cevap L.|Cevap: L|Yanıt: L",
    "Ukrainian": "Відповідь: L",
    "Urdu": "جواب: L|درست جواب L ہے",
    "Vietnamese": "Đáp án: L|Đáp án đúng là L.|Câu trả lời là L.",
}  # fmt: skip
NOTHING = {
    "Chinese": "答案不是L|不选L。|选项L错误。|答案是L或M|答案是L和M|我不知道",
    "French": "La réponse n'est pas L.|La réponse est L ou M.|Je ne sais pas.",
    "German": "Die Antwort ist nicht L.|Die Antwort ist L oder M.|Antwort L ist falsch.|Ich weiß es nicht.",
    "Italian": "La risposta non è L.|La risposta è L o M.",
    "Korean": "정답은 L가 아닙니다.|정답은 L 또는 M입니다.",
    "Portuguese": "A resposta não é L.|A resposta é L ou M.|A resposta é difícil.",
    "Russian": "Ответ не L.|Ответ: L или M.|Ответ: А|Ответ: В|Ответ: С",
    "Spanish": "La respuesta no es L.|La respuesta es L o M.|No lo sé.",
}  # fmt: skip


def extracted(lang: str, response: str) -> str | None:
    verdict = choice.grade({"lang": lang, "response": response, "gold": "A"})
    assert verdict["unparsed"] is (verdict["extracted"] is None)
    return verdict["extracted"]


def written(sentence: str, letter: str) -> str:
    """The sentence with its letter, and another one where it names two."""
    other = "D" if letter != "D" else "E"
    return re.sub(
        r"(?<![A-Za-z])[LM](?![A-Za-z])", lambda m: {"L": letter, "M": other}[m[0]], sentence
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("lang", SEVEN)
def test_the_sentence_of_the_prompt(lang: str, form: str) -> None:
    """As mmlu-prox reads it, and with what that does not read: markdown, spaces, lower case, NFD."""
    sentence = unicodedata.normalize(form, mmlu_prox.ANSWERS[lang])
    for letter in "ABCDEFGHIJ":
        for shape in ("{}", "({})", "( {} )", "**{}**", "**({})**", "[{}]", ": {}", "  {}", '"{}"',
                      "\n{}", "$\\boxed{{{}}}$"):  # fmt: skip
            response = sentence.format(shape.format(letter))
            assert extracted(lang, response) == letter, response
            assert extracted(lang, f"1 2 3. {response}\n") == letter, response
        assert extracted(lang, sentence.format(f"({letter.lower()})")) == letter
    assert extracted(lang, f"{sentence.format('(B)')} {sentence.format('(C)')}") == "C", "the last"
    for nothing in ("(K)", "(\u0410)", "B and C", "?", ""):
        assert extracted(lang, sentence.format(nothing)) is None, nothing


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("lang", SEVEN)
def test_natural_variants(lang: str, form: str) -> None:
    read, not_read = (unicodedata.normalize(form, text).split("|") for text in SEVEN[lang])
    for letter in "ABIJ":
        for sentence in read:
            assert extracted(lang, written(sentence, letter)) == letter, sentence
        for sentence in not_read:
            assert extracted(lang, written(sentence, letter)) is None, sentence


@pytest.mark.parametrize("language", OTHERS)
def test_other_languages(language: str) -> None:
    for letter in "ABC":
        for sentence in OTHERS[language].split("|"):
            assert extracted("sw", written(sentence, letter)) == letter, sentence
    for sentence in NOTHING.get(language, "").split("|"):
        for letter in "ABC":
            assert extracted("sw", written(sentence, letter)) is None, sentence


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_options_in_other_scripts(form: str) -> None:
    """Texts, digits and full stops of the language, composed or not."""
    numbers = {"A": "१०", "B": "१००", "C": "१०००"}
    words = {"A": "पाणी", "B": "दूध", "C": "तेल"}
    yoruba = {"A": "omi tútù", "B": "wàrà", "C": "epo pupa"}
    chinese = {"A": "阿司匹林", "B": "肝素", "C": "低分子肝素"}
    for response, options, letter in (
        ("उत्तर १०० हो।", numbers, "B"),
        ("उत्तर 100 हो।", numbers, "B"),
        ("उत्तर १००१ हो।", numbers, None),
        ("उत्तर आहे दूध.", words, "B"),
        ("दूध।", words, "B"),
        ("Ìdáhùn náà ni wàrà.", yoruba, "B"),
        ("Ìdáhùn náà ni (C) epo pupa.", yoruba, "C"),
        ("Ìdáhùn náà ni (C) wàrà.", yoruba, None),
        ("答案是低分子肝素。", chinese, "C"),
        ("应该用肝素。", chinese, "B"),
    ):
        verdict = choice.grade(
            {
                "response": unicodedata.normalize(form, response),
                "options": {k: unicodedata.normalize("NFC", v) for k, v in options.items()},
                "gold": "A",
            }
        )
        assert verdict["extracted"] == letter, response
