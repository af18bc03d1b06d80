/** Runs in the audio thread: hands every block of the microphone's first channel to the page. */
class Recorder extends AudioWorkletProcessor {
  process([input]) {
    if (input[0]?.length) this.port.postMessage(input[0].slice());
    return true;
  }
}

registerProcessor("recorder", Recorder);
