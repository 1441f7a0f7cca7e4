"""The words by which languages name an answer: one line of a table each, read by mcq-robust.

A word is written as in a dictionary; graders compare without the marks of Latin letters. English,
then the seven languages of MMLU-ProX, then those in which models often answer whatever they are
asked in. A new language is one more line.
"""

from typing import NamedTuple


class _Row(NamedTuple):
    """Words of one language, separated by |. Those of all languages are read in every answer."""

    answer: str  # names the answer: "Antwort" in "Antwort: C"
    links: str = ""  # may stand between that and the letter: "is", "the", "most likely"
    nots: str = ""  # the same, and the letter is not the answer
    joins: str = ""  # between two letters
    option: str = ""  # before a letter: "option"
    right: str = ""  # after a letter or an option's text, beside links: "correct"
    wrong: str = ""
    because: str = ""  # may follow a letter
    so: str = ""  # before a conclusion
    instead: str = ""  # "but", in "not A but B"
    question: str = ""  # begins another question, with a colon


_ENGLISH = _Row(
    answer="answer|answers|ans|ans.|answer choice|correct option|correct choice|correct letter|right option"
    "|right choice|best option|best choice|final choice|my choice|my guess|my pick|selected option|chosen option"
    "|best|correct|right|correct one|correct statement|correct response|choice is|option is|solution|conclusion|result is",
    links="is|are|was|be|been|would|should|must|will|has|have|to|seems|seem|appears|appear|likely|most"
    "|probably|clearly|definitely|certainly|therefore|thus|then|hence|indeed|simply|just|only|the|of"
    "|option|options|choice|choices|letter|answer|alternative|statement|item|correct|right|best|final"
    "|approximately|about|around|roughly|equal to|both|either|here|question|this|that|these|for|above|below|following|given|as|follows|case|one"
    "|i think|i believe|my|our|from|list|listed|available|response|can only be|between|among|patient|please|with|using|reads|single|appropriate|suitable",
    nots="not|isn't|aren't|wasn't|can't|cannot|never|neither|unlikely|wouldn't|shouldn't|can not",
    joins="and|or|nor|and/or|versus|vs|vs.|also|and also|as well as|plus|or maybe|or possibly|or perhaps",
    option="option|choice|letter|answer|answer choice",
    right="correct|right|answer|best|correct answer|right answer|best answer|correct choice"
    "|right choice|best choice|best option|correct option|correct one|right one|fits|fits best|remains",
    wrong="not|isn't|aren't|wrong|incorrect|false|excluded|contraindicated|ruled out|eliminated"
    "|unlikely|inappropriate|can be excluded|can be ruled out|can be eliminated|cannot|can't|out"
    "|unsuitable|inferior|insufficient|stopped|avoided|never|less|should be avoided",
    because="because|since|as|which|that|but|and|over|with|due|from|in|by|based|given|according|where"
    "|while|not|rather|here|though|although|instead|so|the|this|it",
    so="therefore|so|thus|hence|consequently|in conclusion|in summary|overall|finally"
    "|based on this|based on the above|to summarize|in short|surely|as a result",
    instead="but|but rather|rather|instead|but it is",
    question="question|q|problem",
)  # fmt: skip

_OTHERS = {
    "mr": _Row("उत्तर|पर्याय|योग्य उत्तर", "आहे|हे|पर्याय|योग्य|बरोबर|हा", "नाही", "किंवा|आणि|व", "पर्याय", "योग्य|बरोबर|अचूक", "नाही|नाहीत|चुकीचा|चुकीचे|चूक|नसून|योग्य नाही", "कारण", "म्हणून", "नसून|तर", "प्रश्न"),
    "ne": _Row("उत्तर|विकल्प", "हो|छ|विकल्प|सही|ठीक", "होइन", "वा|अथवा|र", "विकल्प", "सही|ठीक", "होइन|होइनन्|छैन|गलत|सही होइन", "किनभने|किनकि", "त्यसैले", "तर|बरु", "प्रश्न"),
    "sw": _Row("jibu|majibu|chaguo sahihi|chaguo lililo sahihi", "ni|la|langu|letu|lako|sahihi|chaguo|herufi|kuwa|hili|hii|swali|sahihi kabisa|lililo", "si|sio|siyo|sio sahihi", "au|na|ama", "chaguo|jibu|herufi", "sahihi|jibu|jibu sahihi|ndiyo|ndilo|ndio", "si|sio|siyo|kosa|makosa|si sahihi|sio sahihi|siyo sahihi", "kwa sababu|kwani|kwa kuwa|maana|na|ambayo|ambalo|ambacho", "kwa hiyo|hivyo|kwahiyo", "bali|ila", "swali"),
    "te": _Row("సమాధానం|జవాబు|ఎంపిక", "ఎంపిక|సరైన|అది|ఇది|ఆప్షన్", "కాదు", "లేదా|మరియు", "ఎంపిక|ఆప్షన్", "సరైనది|సరైన|సరైన సమాధానం", "కాదు|తప్పు|సరైనది కాదు", "ఎందుకంటే", "కాబట్టి|అందువల్ల", "కానీ", "ప్రశ్న"),
    "wo": _Row("tontu|tontu bi|tànneef bi", "bi|mooy|la|baax|jub|dëgg|gi|ki", "du|dul", "walla|ak|wala", "tànneef", "mooy tontu|mooy tontu bi|tontu|mooy|mooy baax", "du|baaxul|dëggul", "ndax|la|ndaxte|ngir", "kon|looloo tax", "waaye", "laaj"),
    "yo": _Row("ìdáhùn|àṣàyàn|èsì", "náà|ni|tó|tọ́|tí|ó|o|tótọ́|jẹ́|mi|wa|yìí|tó tọ́|tí ó tọ́|péye|pé|tọ̀nà|gan-an|àṣàyàn", "kì í ṣe|kìí ṣe|ki i se|kò|kì", "tàbí|àti", "àṣàyàn", "ìdáhùn|ìdáhùn náà|ìdáhùn tó tọ́|tọ̀nà|tọ́", "kì í ṣe|kìí ṣe|kò|kò tọ́|kò tọ̀nà", "nítorí|torí|nítorí pé", "nítorí náà|nítorínáà", "bí kò ṣe|ṣùgbọ́n", "ìbéèrè"),
    "zu": _Row("impendulo|izimpendulo|inketho", "ithi|ngu-|ngu|u-|yi-|efanele|eyiyo|eyi-|enembile|elungile|yile|yakho|yami|enguyona|ingu-|iwu-|yinketho|inketho|i-|iyi-", "akuyona|ayiyona|akusiyo|ayisiyo|ayithi|akuyona i-|akungu-", "noma|no-|kanye no-|futhi", "inketho", "yimpendulo|iyimpendulo|yiyona mpendulo|yiyona|ilungile|yimpendulo efanele|yimpendulo elungile", "ayilungile|ayiyona|akuyona|iphutha|ayisiyo|ayifanele", "ngoba|ngenxa", "ngakho|ngakho-ke|ngakho ke", "kodwa|kepha", "umbuzo"),
    "ar": _Row("الإجابة|الاجابة|الجواب|إجابة|الإجابة الصحيحة|الخيار الصحيح", "هي|هو|الصحيحة|الصحيح|الخيار|حرف", "ليست|ليس", "أو|و", "الخيار", "صحيح|صحيحة", "خطأ|غير صحيح", "لأن", "لذلك|إذن", "بل", "سؤال"),
    "bn": _Row("উত্তর|সঠিক বিকল্প", "হল|হলো|হচ্ছে|সঠিক|বিকল্প", "", "বা|এবং|অথবা", "বিকল্প", "সঠিক", "নয়|ভুল", "কারণ", "তাই|সুতরাং"),
    "cs": _Row("odpověď|správná odpověď", "je|správná|zní|možnost", "není", "nebo|a", "možnost", "správně|správná", "není|špatně", "protože", "proto"),
    "de": _Row("antwort|lösung|richtig|korrekt|richtige option|ergebnis ist", "ist|lautet|die|richtige|korrekte|option|buchstabe|somit|wäre|antwort|wohl|wahrscheinlich", "nicht|keine|nicht die", "oder|und", "option|antwort", "richtig|korrekt|die richtige antwort|die richtige|die antwort", "falsch|nicht|nicht richtig|unwahrscheinlich", "weil|denn|da", "daher|somit|deshalb|folglich", "sondern", "frage"),
    "el": _Row("απάντηση|η απάντηση|σωστή επιλογή", "είναι|η|το|σωστή", "δεν είναι|δεν", "ή|και", "επιλογή", "σωστή", "λάθος", "γιατί|διότι", "άρα"),
    "es": _Row("respuesta|opción correcta|alternativa correcta|elijo|solución", "es|la|correcta|opción|letra|sería|alternativa|final|más probable|entonces|respuesta|número", "no es|no|no es la|no sería", "o|y|u|e", "opción|alternativa|letra|respuesta", "correcta|la correcta|la respuesta correcta|la respuesta|la opción correcta", "incorrecta|no|no es correcta|falsa|no es", "porque|ya que|debido|pues", "por lo tanto|por tanto|así que|entonces", "sino", "pregunta"),
    "fa": _Row("پاسخ|جواب|گزینه صحیح|گزینه درست", "صحیح|درست|گزینه|است|برابر|عبارت", "", "یا|و", "گزینه", "صحیح|درست", "نیست|غلط|نادرست", "زیرا|چون", "بنابراین"),
    "fi": _Row("vastaus|oikea vaihtoehto", "on|oikea|vaihtoehto", "ei ole|ei", "tai|ja", "vaihtoehto", "oikein|oikea", "väärin|ei ole", "koska", "siis|joten"),
    "fr": _Row("réponse|bonne option|solution|option correcte", "est|la|l'option|option|correcte|bonne|serait|donc|lettre|finale|exacte|réponse|le|probablement", "n'est pas|pas|n'est pas la", "ou|et", "option|réponse|lettre|l'option|la réponse", "correcte|la bonne réponse|la réponse correcte|exacte|bonne|la bonne", "fausse|incorrecte|n'est pas|pas", "car|parce|puisque", "donc|ainsi", "mais", "question"),
    "hi": _Row("उत्तर|जवाब|सही विकल्प", "है|सही|विकल्प|होगा|का", "नहीं", "या|और", "विकल्प", "सही", "नहीं|गलत|सही नहीं", "क्योंकि", "इसलिए|अतः", "बल्कि", "प्रश्न"),
    "hu": _Row("válasz|a helyes válasz", "az|helyes", "nem", "vagy", "", "helyes|a helyes", "nem|hibás|helytelen", "mert", "tehát"),
    "id": _Row("jawaban|jawabannya|pilihan yang benar", "adalah|yang|benar|tepat|pilihan|ialah|paling|opsi", "bukan|bukanlah", "atau|dan", "pilihan|opsi", "benar|jawaban yang benar|adalah jawaban yang benar", "salah|bukan", "karena|sebab", "jadi|oleh karena itu", "melainkan|tetapi", "pertanyaan"),
    "it": _Row("risposta|opzione corretta", "è|la|corretta|giusta|lettera|opzione|sarebbe|l'opzione|quindi|esatta|risposta", "non è|non|non è la", "o|e|oppure", "opzione|risposta|l'opzione", "corretta|la risposta corretta|giusta|esatta|la risposta giusta", "sbagliata|errata|non|non è corretta", "perché|poiché|in quanto", "quindi|dunque|pertanto", "ma|bensì", "domanda"),
    "ja": _Row("答え|正解|解答|回答|正答|最終回答", "は|が|選択肢|正しい|の", "", "または|と|か|もしくは|、", "選択肢", "が正解|が正しい|は正しい|が答え", "ではない|ではありません|じゃない|は誤り|は間違い|は不正解", "なぜなら", "したがって|よって|だから", "", "問題|質問"),
    "ko": _Row("정답|답|답변|올바른 선택", "은|는|이|선택지|보기|옳은|맞는|올바른", "", "또는|와|과|이나|나|및", "선택지|보기", "이 정답|가 정답|이 맞|가 맞|이 옳|가 옳", "가 아니|이 아니|는 아니|은 아니|가 아닙|이 아닙|는 아닙|은 아닙|아닙니다|아니다|가 틀|이 틀|는 틀|은 틀", "왜냐하면", "따라서|그러므로", "가 아니라|이 아니라", "문제|질문"),
    "nl": _Row("antwoord|oplossing|juiste optie", "is|het|juiste|correcte|optie|letter|dus|de", "niet|niet optie", "of|en", "optie|antwoord", "juist|correct|het juiste antwoord|goed", "fout|niet|onjuist", "omdat|want", "dus|daarom", "maar", "vraag"),
    "pl": _Row("odpowiedź|odpowiedzią", "to|jest|poprawna|prawidłowa|brzmi|odpowiedź|opcja|litera", "nie jest|nie|to nie", "lub|albo|i|oraz", "opcja|odpowiedź", "poprawna|prawidłowa|jest poprawna", "nie|błędna|niepoprawna", "ponieważ|bo|gdyż", "więc|zatem", "lecz", "pytanie"),
    "pt": _Row("resposta|alternativa correta|opção correta|gabarito", "é|a letra|a alternativa|a opção|correta|letra|alternativa|opção|seria|certa|final|resposta", "não é|não|não é a", "ou|e", "letra|alternativa|opção|a letra|resposta", "correta|a correta|a resposta correta|certa|a resposta|a alternativa correta", "incorreta|errada|não|falsa|não é", "porque|pois|já que", "portanto|logo|assim", "mas", "pergunta|questão"),
    "ro": _Row("răspuns|răspunsul|raspunsul corect", "este|corect|varianta|litera", "nu este|nu", "sau", "varianta", "corect|corectă", "greșit|nu", "deoarece|pentru", "deci"),
    "ru": _Row("ответ|правильный вариант|ответом", "это|является|правильный|верный|вариант|буква|будет|под буквой", "не|не является", "или|и", "вариант|ответ", "верно|правильно|правильный ответ|верный ответ|является правильным", "не|неверно|неправильно|неверен|неправильный", "потому|так как|поскольку", "следовательно|поэтому|значит|итак", "а", "вопрос"),
    "sv": _Row("svar|svaret|rätt alternativ", "är|rätt|alternativ|det|korrekta|bokstav", "inte|är inte", "eller|och", "alternativ", "rätt|korrekt|rätt svar", "fel|inte", "eftersom|för att", "därför|alltså", "utan", "fråga"),
    "ta": _Row("பதில்|விடை|சரியான தேர்வு", "சரியான|என்பது|தேர்வு|ஆகும்", "", "அல்லது|மற்றும்", "தேர்வு", "சரியானது|சரி|சரியான", "அல்ல|தவறு", "ஏனெனில்", "எனவே"),
    "th": _Row("คำตอบ|ตอบ|ข้อที่ถูกต้อง", "คือ|ที่ถูกต้อง|ที่ถูก|ข้อ|เป็น|ตัวเลือก|ที่", "ไม่ใช่|ไม่", "หรือ|และ", "ข้อ|ตัวเลือก", "ถูกต้อง|ถูก|เป็นคำตอบ", "ไม่|ผิด|ไม่ใช่|ไม่ถูก", "เพราะ|เนื่องจาก", "ดังนั้น"),
    "tl": _Row("sagot|ang sagot", "ay|tamang|ang|titik", "hindi", "o|at", "titik", "tama|ang tamang sagot", "mali|hindi", "dahil", "kaya"),
    "tr": _Row("cevap|yanıt|doğru seçenek|cevabı", "doğru|seçenek|şıkkı|şık|olarak|kesinlikle", "", "veya|ve|ya da", "seçenek", "doğru|doğrudur|doğru cevap", "değil|değildir|yanlış|yanlıştır", "çünkü", "dolayısıyla|sonuç olarak"),
    "uk": _Row("відповідь|правильний варіант", "це|є|правильна|варіант", "не|не є", "або|і|та", "варіант", "правильно|вірно|правильна", "не|неправильно|невірно", "тому що|бо|оскільки", "отже"),
    "ur": _Row("جواب|درست آپشن", "درست|صحیح|آپشن|ہے", "", "یا|اور", "آپشن", "درست|صحیح", "نہیں|غلط", "کیونکہ", "لہذا"),
    "vi": _Row("đáp án|câu trả lời|chọn|lựa chọn đúng", "là|đúng|chính xác|phương án|cuối cùng|câu|nhất|sẽ", "không phải|không phải là|không", "hoặc|và|hay", "phương án|đáp án", "đúng|là đáp án đúng|là đúng|chính xác|là đáp án", "sai|không|không đúng", "vì|bởi", "do đó|vậy|vì vậy", "mà là", "câu hỏi"),
    "zh": _Row("答案|正确选项|正確選項|故选|故選|应选|應選|选择|選擇|选|選|正确的是|正確的是|结论", "是|为|為|选项|選項|正确|正確|应该|應該|應為|应为|最终|最佳|就是|应该是|该|的|即", "不是|不为|不選|不选|并非", "和|或|与|與|及|或者|以及|还是|跟", "选项|選項", "正确|正確|是正确|是正確|对|對|是正确的|是正确答案|是正確答案|是答案|为正确", "不正确|不正確|错误|錯誤|不对|不是|错|是错|是錯|不符合|不选|排除|不正确的", "因为|因為", "因此|所以|故|综上", "而是", "问题|問題|题目"),
}  # fmt: skip

# language -> field -> words
LANGUAGES: dict[str, dict[str, list[str]]] = {
    name: {field: list(filter(None, text.split("|"))) for field, text in row._asdict().items()}
    for name, row in ({"en": _ENGLISH} | _OTHERS).items()
}
SEVEN = ("mr", "ne", "sw", "te", "wo", "yo", "zu")
