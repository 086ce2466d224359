// Pictures from files: as they are where the model reads them so, else drawn anew, upright and not too large.

const LONGEST_SIDE = 1600; // px; the model sees no more than 448
const SENT_AS_IS = 2 << 20; // bytes
const READ_BY_SERVER = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];

// A picture for a question: {name, url, width, height}, whose url is a data URL. Throws if the file is not a picture.
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file); // upright, as the photographer held the camera
  try {
    const as_it_is = READ_BY_SERVER.includes(file.type) && file.size <= SENT_AS_IS && !(await mayBeTurned(file));
    const scale = as_it_is ? 1 : Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const width = Math.max(1, Math.round(bitmap.width * scale));
    const height = Math.max(1, Math.round(bitmap.height * scale));
    const url = await dataUrl(as_it_is ? file : await drawn(bitmap, width, height));
    return { name: file.name || "", url, width, height };
  } finally {
    bitmap.close();
  }
}

// A picture from a data URL of the server.
export async function pictureOf(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return { name: "", url, width: image.naturalWidth, height: image.naturalHeight };
}

// The model ignores the orientation that a camera writes into a JPEG, so such a picture is drawn anew.
async function mayBeTurned(file) {
  if (file.type !== "image/jpeg") return false;
  const head = new TextDecoder("latin1").decode(await file.slice(0, 65536).arrayBuffer());
  return head.includes("Exif");
}

async function drawn(bitmap, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG has no transparency
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no picture"))), "image/jpeg", 0.95);
  });
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
