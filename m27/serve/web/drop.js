/** Files dropped anywhere on the page, where no part of it takes them itself. */

const withFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

/** Gives `onfiles` what is dropped; while files are dragged over the page, it has the class "dropping". */
export function dropAnywhere(onfiles) {
  const { classList } = document.body;
  addEventListener("dragover", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) classList.remove("dropping");
  });
  // Also where an editor takes the files, hence on the way down.
  addEventListener("drop", () => classList.remove("dropping"), { capture: true });
  addEventListener("drop", (event) => {
    if (!withFiles(event)) return;
    event.preventDefault(); // the browser would leave the page and show the file
    onfiles(event.dataTransfer.files);
  });
}
