"""What tokenizers are trained on, and what they are asked."""

# What the tokenizers are trained on: several scripts, so that merges cross UTF-8 bytes everywhere.
CORPUS = [
    "Once upon a time there was a small ferry on a wide river. It carried people, sheep and letters. "
    "The ferryman didn't ask who they were; he'd nod, they'd sit, and the river did the rest. We've seen it, "
    "I'll say so, you're right, that's all I'm told. Every token goes to its experts and comes home again.",
    "Die Fähre überquert den Fluß jeden Tag um 6:30 Uhr. Größe, Höhe, Länge und Gewicht wurden geprüft. "
    "Äpfel, Öl und Übermut: das sind drei Wörter mit Umlauten. Straßenbahnhaltestelle, Donaudampfschiff.",
    "渡船每天早上六点半出发。河水很宽,但是船夫不着急。专家并行推理:每个词元去找它的专家,然后回家。"
    "我们今天学习中文,明天学习数学。北京、上海、广州和深圳都是大城市。",
    "تعبر العبّارة النهر كل صباح. كان الماء هادئًا والناس ينتظرون. مرحبا بالعالم، كيف حالك اليوم؟ "
    "السلام عليكم ورحمة الله وبركاته.",
    "नाव हर सुबह नदी पार करती है। लोग घाट पर इंतज़ार करते हैं। नमस्ते दुनिया, आप कैसे हैं? "
    "हिन्दी में संयुक्ताक्षर होते हैं: क्षत्रिय, ज्ञान, श्रीमती।",
    "Паром пересекает реку каждый день. Πλοίο διασχίζει το ποτάμι. חלב ודבש. 日本語のテキストとカタカナ。한국어 문장입니다.",
    "👩‍👩‍👧‍👦 👨‍🚀 🏳️‍🌈 👍🏽 😀😀😀 🇩🇪🇫🇷 ❤️ ✈️ e\u0301 a\u0308 n\u0303 o\u0302 \u1ec7 cafe\u0301 Zu\u0308rich café Zürich",
    "0 1 2 3 10 11 12 100 1000 2024 3.14159 1,234,567 1e-5 0x7fff ½ ² Ⅷ ٣ ५ 12:34:56 50% $9.99 €20",
    "for (int i = 0; i < n; ++i) {\n    sum += x[i] * w[i];\n}\n\n\treturn sum;\r\n#include <vector>\r\n"
    "def f(x):\n    if x is None:\n        return {}\n    return {'a': [1, 2, 3], \"b\": x->y != NULL}\n\n\n",
    "    four spaces\n        eight spaces\n\n\n\n   \n \t \t tabs\t\tand   runs    of     space      \n",
]

# Texts on which tokenizers differ. Escapes where an editor would normalise or hide the character.
TRICKY = [
    "", " ", "  ", "     ", "\t", "\n", "\r\n", "\r", "\n\n\n", " \n ", "\t\t x", "a\r\nb\r\n", "a \n\n b  ",
    "Hello, world!", "hello", " hello", "hello ", "  hello   world  ", "don't", "DON'T", "I'LL you'Re we'Ve he'd",
    "'s", " 's", "x's 'tis", "don\u2019t", "Once upon a time", "1234567", " 1234567", "3.14159e-10", "1,234,567.89",
    "abc123def", "x=1;y=22", "\u0663\u0664\u0665 \u096b\u096c \u00bd\u00b2 \u2167", "Fl\u00fcsse \u00fcber Stra\u00dfen",
    "caf\u00e9", "cafe\u0301", "Zu\u0308rich Z\u00fcrich", "\u1ec7 e\u0323\u0302 e\u0302\u0323", "\u0301", "a \u0301b", "\u0308\u0308\u0308",
    "\u212b \u2126 \u00c5 \ufb01 \uac00 \u1100\u1161", "渡船每天早上六点半出发。", "我love编程123次", "日本語のテキスト", "한국어 문장",
    "تعبر العبّارة النهر", "नमस्ते दुनिया", "क्षत्रिय", "Привет, мир! Γειά σου",
    "👩‍👩‍👧‍👦", "a👍🏽b", "😀 😀😀", "🇩🇪🇫🇷", "❤️ ✈️", "\U0001f9ff\U0001fae0\U00010348\U0001d518",
    "<|endoftext|>", "a<|im_start|>b", " <|im_start|> user\nhi<|im_end|>\n", "<|im_start|><|im_end|>",
    "<|im_start|", "<|IM_START|>", "x<tool_call>y <tool_call> z", "e<|im_end|>\u0301", "\u00e9<tool_call>e\u0301",
    "\u0000", "a\u0000b", "\u0001\u0002\u001f\u007f", "\u00a0nbsp\u00a0", "\u2003em\u3000wide\u2028line\u2029para\u0085nel",
    "\ufeffbom", "\u200bzero\u200dwidth", "\ufffd", "\u00ad\u2011soft", "\v\f",
    "for (int i = 0; i < n; ++i) {\n    sum += x[i];\n}\n", "def f(x):\n\treturn {'a': [1, 2]}\n", "!!!???...\n\n--- === ***",
    "https://example.org/a_b?c=d&e=%20#f", "a" * 300, "Donaudampfschifffahrtsgesellschaftskapit\u00e4n" * 4, "=" * 130, " " * 97 + "x",
    "ab " * 60, "\u00e4\u00f6\u00fc" * 40, "line one\nline two\r\n\tline three   \n\n   end",
]
