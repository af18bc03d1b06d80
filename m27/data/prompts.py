"""How each task is asked: several phrasings a task, the first of which evaluation and tour use.

`{text}` (and for some tasks `{more}`) is filled in by the caller. House style of answers: lower
case, no leading article, no closing full stop ("red fox"); stories keep their own sentences.
Media stand before the words of a question and after the words of a request.
"""

from __future__ import annotations

import random

PROMPTS: dict[str, list[str]] = {
    # picture → words
    "name_picture": [
        "What is this?",
        "What is in the picture?",
        "Name the thing in the photo.",
        "What does this photo show?",
        "Which object is this?",
    ],
    "caption_picture": [
        "Describe the picture.",
        "What does the picture show?",
        "Caption this image.",
        "Give this picture a title.",
        "What do you see?",
    ],
    "vqa": ["{text}"],
    "scene_caption": [
        "Describe the scene.",
        "What is in this scene?",
        "List what you see in the picture.",
    ],
    "scene_count": [
        "How many {text} are there?",
        "Count the {text}.",
        "What is the number of {text}?",
    ],
    "scene_color": [
        "What color is the {text}?",
        "Which color has the {text}?",
        "Tell me the color of the {text}.",
    ],
    "scene_where": [
        "Where is the {text}?",
        "In which part of the picture is the {text}?",
        "Find the {text}. Where is it?",
    ],
    "scene_box": [
        "Give the box of the {text}.",
        "Locate the {text} as left top right bottom.",
        "Draw a box around the {text} and give its corners.",
    ],
    # words → picture
    "draw": [
        "Draw {text}.",
        "Draw a picture of {text}.",
        "Make an image of {text}.",
        "Show me {text}.",
        "Can you draw {text}?",
        "I want a picture of {text}.",
        "Please paint {text}.",
        "Generate an image: {text}",
    ],
    # stories
    "story": [
        "Tell a story with pictures: {text}",
        'Write a picture book called "{text}".',
        "Tell me a short story about {text}, with a picture for each part.",
        "Make an illustrated story: {text}",
    ],
    "story_page": [
        "Draw the picture for this page: {text}",
        "Illustrate this part of a story: {text}",
        "Make the picture that goes with: {text}",
    ],
    "story_next": [
        "What happens next?",
        "Go on with the story.",
        "Write the next page.",
    ],
    "story_text": [
        "Tell the story of this picture.",
        "Write the text for this page of a picture book.",
        "What happens on this page?",
    ],
    # sound → words
    "name_sound": [
        "What is this sound?",
        "What do you hear?",
        "Describe the sound.",
        "What makes this sound?",
    ],
    "name_instrument": [
        "Which instrument is this?",
        "What instrument plays?",
        "Name the instrument.",
    ],
    "name_word": [
        "Which word is spoken?",
        "What word do you hear?",
        "What is said?",
    ],
    "transcribe": [
        "Transcribe the speech.",
        "Write down what is said.",
        "What does the voice say?",
        "Turn this speech into text.",
    ],
    # words → sound
    "speak": [
        "Say: {text}",
        "Say this aloud: {text}",
        "Speak: {text}",
        "Read aloud: {text}",
    ],
    "sound_for_text": [
        "Make the sound of {text}.",
        "What does {text} sound like?",
        "Play the sound of {text}.",
        "Let me hear {text}.",
    ],
    # picture ↔ sound
    "sound_for_picture": [
        "What sound does this make?",
        "Make the sound of this picture.",
        "Let me hear what is in the picture.",
    ],
    "picture_for_sound": [
        "Draw what makes this sound.",
        "What makes this sound? Show a picture.",
        "Make a picture for this sound.",
    ],
    # plain language
    "text": ["{text}"],
}


def ask(task: str, rng: random.Random | None = None, **fields: str) -> str:
    """A phrasing of `task`: a random one, or the first without `rng`. KeyError: unknown task."""
    phrasings = PROMPTS[task]
    chosen = phrasings[0] if rng is None else rng.choice(phrasings)
    return chosen.format(**fields) if fields else chosen
