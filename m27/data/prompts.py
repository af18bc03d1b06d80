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
        "What do you see in this picture?",
        "What is shown here?",
        "Say in a word what this is.",
        "Can you tell me what this is?",
        "Identify the object.",
    ],
    "caption_picture": [
        "Describe the picture.",
        "What does the picture show?",
        "Caption this image.",
        "Give this picture a title.",
        "What do you see?",
        "Write a caption for this.",
        "Tell me what is drawn here.",
        "Describe this image in a few words.",
        "What would you call this picture?",
        "Please describe what you see.",
    ],
    "caption_language": [
        "Describe the picture in {text}.",
        "What does the picture show? Answer in {text}.",
        "Caption this image in {text}.",
        "Give this picture a title in {text}.",
        "Say in {text} what you see.",
        "What is this called in {text}?",
    ],
    "vqa": ["{text}"],
    "scene_caption": [
        "Describe the scene.",
        "What is in this scene?",
        "List what you see in the picture.",
        "What things are there, and where?",
        "Tell me about this scene.",
        "Write down everything in the picture.",
    ],
    "scene_count": [
        "How many {text} are there?",
        "Count the {text}.",
        "What is the number of {text}?",
        "How many {text} can you see?",
        "How many {text} does the picture show?",
        "Tell me how many {text} there are.",
    ],
    "scene_color": [
        "What color is the {text}?",
        "Which color has the {text}?",
        "Tell me the color of the {text}.",
        "What is the color of the {text}?",
        "Name the color of the {text}.",
        "The {text}: what color is it?",
    ],
    "scene_relation": [
        "Where is the {text}, seen from the {more}?",
        "On which side of the {more} is the {text}?",
        "How does the {text} lie to the {more}?",
        "Seen from the {more}, where is the {text}?",
        "Tell me where the {text} is relative to the {more}.",
        "Looking from the {more}, where do you find the {text}?",
    ],
    # Two more ways to ask for a relation; `more` is "left of", "right of", "above" or "below".
    "scene_relation/what": [
        "What is {more} the {text}?",
        "Which thing is {more} the {text}?",
        "Name the thing {more} the {text}.",
        "What do you see {more} the {text}?",
        "{more} the {text}: what is there?",
        "Tell me what is {more} the {text}.",
    ],
    "scene_relation/is": [
        "Is the {text} {more}?",
        "Would you say the {text} is {more}?",
        "Yes or no: the {text} is {more}.",
        "Is it true that the {text} is {more}?",
        "Can you see the {text} {more}?",
        "The {text} is {more}, right?",
    ],
    "scene_where": [
        "Where is the {text}?",
        "In which part of the picture is the {text}?",
        "Find the {text}. Where is it?",
        "Where do you see the {text}?",
        "Tell me where the {text} is.",
        "The {text}: where in the picture?",
    ],
    "scene_box": [
        "Give the box of the {text}.",
        "Locate the {text} as left top right bottom.",
        "Draw a box around the {text} and give its corners.",
        "What are the corners of the {text}?",
        "Which box holds the {text}?",
        "Mark the {text}: left top right bottom.",
    ],
    "photo_box": [
        "Give the box of the {text}.",
        "Locate the {text} in the photo as left top right bottom.",
        "Where in this photo is the {text}? Give its box.",
        "What are the corners of the {text} in the photo?",
        "Which box holds the {text}?",
        "Mark the {text}: left top right bottom.",
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
        "Create a picture of {text}.",
        "Could you show me what {text} looks like?",
        "I would like to see {text}.",
        "A picture of {text}, please.",
    ],
    # stories
    "story": [
        "Tell a story with pictures: {text}",
        'Write a picture book called "{text}".',
        "Tell me a short story about {text}, with a picture for each part.",
        "Make an illustrated story: {text}",
        'Begin a picture book. Its title is "{text}".',
        "I want a story with pictures: {text}",
    ],
    "story_count": [
        "Tell a story about {text} with {more}.",
        "Write a story about {text}. Put {more} in it.",
        "Tell me about {text} in a story with {more}.",
        "Make a picture book about {text} that has {more}.",
        "I want a story about {text} with exactly {more}.",
        "Please write about {text} and draw {more}.",
    ],
    "place_pictures": [
        "Write these sentences and draw a picture after {more}: {text}",
        "Copy these sentences. Put a picture after {more}: {text}",
        "Here are some sentences. Illustrate {more}: {text}",
        "Repeat this text, with a picture behind {more}: {text}",
        "Set this text and add a picture after {more}: {text}",
        "Write this out; after {more} comes a picture: {text}",
    ],
    "story_page": [
        "Draw the picture for this page: {text}",
        "Illustrate this part of a story: {text}",
        "Make the picture that goes with: {text}",
        "Which picture belongs to this page? {text}",
        "Paint this page of a picture book: {text}",
        "This is a page of a story. Draw it: {text}",
    ],
    "story_next": [
        "What happens next?",
        "Go on with the story.",
        "Write the next page.",
        "And then?",
        "How does the story go on?",
        "Continue, with a picture.",
    ],
    "story_text": [
        "Tell the story of this picture.",
        "Write the text for this page of a picture book.",
        "What happens on this page?",
        "What does the story say here?",
        "Make up the sentences for this picture.",
        "Write what goes with this picture in a book.",
    ],
    # sound → words
    "name_sound": [
        "What is this sound?",
        "What do you hear?",
        "Describe the sound.",
        "What makes this sound?",
        "Name this sound.",
        "What can be heard?",
        "What is making this noise?",
        "Tell me what you hear.",
    ],
    "soundscape": [
        "What happens in this recording?",
        "Describe what you hear, in order.",
        "Which sounds follow each other?",
        "Tell me what happens, sound by sound.",
        "List the sounds in this recording.",
        "What do you hear first, and what then?",
    ],
    "name_instrument": [
        "Which instrument is this?",
        "What instrument plays?",
        "Name the instrument.",
        "What is being played?",
        "Which instrument do you hear?",
        "Tell me the instrument.",
    ],
    "name_family": [
        "Which family of instruments is this?",
        "To which family does this instrument belong?",
        "What kind of instrument plays?",
        "Name the family of the instrument.",
        "Is this strings, brass or another family?",
        "What sort of instrument is it?",
    ],
    "name_word": [
        "Which word is spoken?",
        "What word do you hear?",
        "What is said?",
        "Which word is this?",
        "Write the word you hear.",
        "What does the voice say? It is one word.",
    ],
    "transcribe": [
        "Transcribe the speech.",
        "Write down what is said.",
        "What does the voice say?",
        "Turn this speech into text.",
        "Write what you hear.",
        "What are the words?",
        "Please transcribe this recording.",
        "What is the speaker saying?",
    ],
    # words → sound
    "speak": [
        "Say: {text}",
        "Say this aloud: {text}",
        "Speak: {text}",
        "Read aloud: {text}",
        "Please say: {text}",
        "Let me hear this spoken: {text}",
        "Pronounce: {text}",
        "Read this out: {text}",
    ],
    "sound_for_text": [
        "Make the sound of {text}.",
        "What does {text} sound like?",
        "Play the sound of {text}.",
        "Let me hear {text}.",
        "I want to hear {text}.",
        "Give me the sound of {text}.",
        "Play {text}.",
        "How does {text} sound?",
    ],
    # picture ↔ sound
    "sound_for_picture": [
        "What sound does this make?",
        "Make the sound of this picture.",
        "Let me hear what is in the picture.",
        "How does this sound?",
        "Play the sound that belongs to this.",
        "What would I hear here?",
    ],
    "picture_for_sound": [
        "Draw what makes this sound.",
        "What makes this sound? Show a picture.",
        "Make a picture for this sound.",
        "Show me what I hear.",
        "Paint where this sound comes from.",
        "Which picture belongs to this sound?",
    ],
    # plain language
    "text": ["{text}"],
}

# Code → its English name, and how a picture's name is asked for in the language itself.
LANGUAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "de": ("German", ("Beschreibe das Bild.", "Was ist auf dem Bild?", "Was siehst du?")),
    "fr": ("French", ("Décris l'image.", "Que montre l'image ?", "Que vois-tu ?")),
    "es": ("Spanish", ("Describe la imagen.", "¿Qué muestra la imagen?", "¿Qué ves?")),
    "it": ("Italian", ("Descrivi l'immagine.", "Che cosa mostra l'immagine?", "Che cosa vedi?")),
    "nl": ("Dutch", ("Beschrijf de afbeelding.", "Wat staat er op de foto?", "Wat zie je?")),
}


def ask(task: str, rng: random.Random | None = None, **fields: str) -> str:
    """A phrasing of `task`: a random one, or the first without `rng`. KeyError: unknown task."""
    phrasings = PROMPTS[task]
    chosen = phrasings[0] if rng is None else rng.choice(phrasings)
    asked = chosen.format(**fields) if fields else chosen
    return asked[:1].upper() + asked[1:] if chosen[:1] == "{" and task not in _VERBATIM else asked


def ask_in(language: str, rng: random.Random | None = None) -> str:
    """Asks for a caption in a language of `LANGUAGES`: in English, or half the time in its own.

    Without `rng` in English. KeyError: unknown language.
    """
    english, own = LANGUAGES[language]
    if rng is not None and rng.random() < 0.5:
        return rng.choice(own)
    return ask("caption_language", rng, text=english)


_VERBATIM = ("vqa", "text")
