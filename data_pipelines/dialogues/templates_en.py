"""English questions and answers of the dialogues, by kind of exchange (`exchanges`).

{picture} is "Picture 2" or "the picture", {name} a phrase with its article, {region} a phrase with its boxes.
"""

ONE_PICTURE = ("the picture", "this picture", "the image", "this image")
NUMBERED = "Picture {n}"
PAIR = "{first} and {last}"
END = "."
COUNTS = ("no", "one", "two", "three", "four")
IN_PICTURE = "In {picture}: {question}"

QUESTIONS: dict[str, tuple[str, ...]] = {
    "describe": (
        "Describe {picture}.",
        "What do you see in {picture}?",
        "What is happening in {picture}?",
        "Tell me briefly what {picture} shows.",
        "Can you sum up {picture} in a sentence?",
        "How would you caption {picture}?",
        "What is {picture} about?",
        "Please give a short description of {picture}.",
    ),
    "describe_next": (
        "And {picture}?",
        "What about {picture}?",
        "Now do the same for {picture}.",
        "And what does {picture} show?",
        "Please describe {picture} too.",
    ),
    "where": (
        "Where is {name} in {picture}?",
        "Find {name} in {picture}.",
        "Please point out {name} in {picture}.",
        "Can you locate {name} in {picture}?",
        "Draw a box around {name} in {picture}.",
        "Show me where {name} is in {picture}.",
        "I am looking for {name} in {picture}. Can you help?",
        "Mark {name} in {picture}.",
    ),
    "where_it": (
        "Where is it?",
        "Where exactly is it?",
        "Can you mark it?",
        "Please draw a box around it.",
        "Show me where that is.",
        "Point it out, please.",
    ),
    "what_at": (
        "What is at {box} in {picture}?",
        "What is in the region {box} of {picture}?",
        "Please describe the area {box} of {picture}.",
        "Look at {box} in {picture}. What is it?",
        "What does the box {box} in {picture} contain?",
        "Tell me what you see at {box} in {picture}.",
    ),
    "ground": (
        "Describe {picture} and mark what you mention.",
        "Caption {picture} and give the boxes of what you name.",
        "What does {picture} show? Please add the boxes.",
        "Give a description of {picture} with the position of everything you mention.",
    ),
    "list": (
        "What can you point out in {picture}?",
        "Name a few things in {picture} and mark them.",
        "List what you can locate in {picture}.",
        "Which things can you find in {picture}? Show their boxes.",
    ),
    "what_else": (
        "What else can you point out there?",
        "And what else is there?",
        "Can you mark anything else in it?",
        "What other things do you see there?",
    ),
    "read": (
        "Read the text in {picture}.",
        "What is written in {picture}?",
        "Please transcribe the text of {picture}.",
        "What does the text in {picture} say?",
        "Write down all the words in {picture}.",
    ),
    "read_at": (
        "What is written at {quad} in {picture}?",
        "Read the line at {quad} in {picture}.",
        "Which words are in the area {quad} of {picture}?",
        "What does the text at {quad} in {picture} say?",
    ),
    "where_text": (
        'Where is "{text}" written in {picture}?',
        'Find the line "{text}" in {picture}.',
        'Please mark the text "{text}" in {picture}.',
        'Can you locate the words "{text}" in {picture}?',
    ),
    "count": (
        "How many pictures have I sent you?",
        "How many pictures are there?",
        "How many images do you see so far?",
        "Count the pictures, please.",
    ),
    "which": (
        "Which picture shows {name}?",
        "In which picture can I see {name}?",
        "Which of the pictures contains {name}?",
        "I am looking for {name}. Which picture is it in?",
        "Which picture has {name} in it?",
    ),
    "which_find": (
        "Which picture shows {name}? Please mark it.",
        "Find {name} in one of the pictures and draw a box.",
        "In which picture is {name}, and where?",
    ),
    "which_text": (
        'Which picture contains the text "{text}"?',
        'In which picture is "{text}" written?',
        'Where can I read "{text}": in which picture?',
    ),
    "compare": (
        "Compare {pair}.",
        "What is the difference between {pair}?",
        "How do {pair} differ?",
        "What do {pair} show, one after the other?",
        "Please contrast {pair}.",
    ),
    "ask": ("{question}",),
}

ANSWERS: dict[str, tuple[str, ...]] = {
    "describe": ("{caption}",),
    "describe_next": ("{caption}",),
    "where": ("{region}", "{region}.", "Here: {region}.", "I have marked it: {region}."),
    "where_many": ("{region}", "{region}.", "Here: {region}.", "These are the boxes: {region}."),
    "where_it": ("{region}", "Here: {region}.", "It is here: {region}."),
    "what_at": ("{Name}.", "That is {name}.", "It is {name}.", "The box shows {name}.", "I see {name} there."),
    "ground": ("{segments}",),
    "list": ("{regions}.", "I can point out {regions}.", "I can mark {regions}."),
    "what_else": ("{regions}.", "There is also this: {regions}.", "I can also mark {regions}."),
    "read": ("{lines}",),
    "read_at": ("{text}", 'It says "{text}".', 'The text is "{text}".'),
    "where_text": ("{line}", "Here: {line}.", "I have marked it: {line}."),
    "count": ("{Count}.", "There are {count} pictures.", "{Count} pictures."),
    "which": ("{picture}.", "It is in {picture}.", "{picture} shows it."),
    "which_find": ("It is in {picture}: {region}.", "{picture}: {region}", "In {picture}: {region}."),
    "which_text": ("{picture}.", "It is in {picture}.", "You can read it in {picture}."),
    "compare": (
        "{first}: {first_caption} {last}: {last_caption}",
        "{first} shows this: {first_caption} {last} is different: {last_caption}",
        "In {first}: {first_caption} In {last}: {last_caption}",
    ),
    "ask": ("{answer}",),
}

CONTINUE = ("Continue this text:\n{text}", "How does this text go on?\n{text}", "Write what comes next.\n{text}")
