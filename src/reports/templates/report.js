"use strict";
// All texts of the data are set through textContent; nothing here builds markup from strings.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const PAGE = 20;
  let page = 0;

  const element = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const tags = [...new Set(data.videos.flatMap((video) => video.tags))].sort();
  if (tags.length > 1 && tags.length <= 200) {
    byId("tag-label").hidden = false;
    for (const tag of tags) {
      const option = element("option", "", tag);
      option.value = tag;
      byId("tag").append(option);
    }
  }

  function play(video) {
    const isImage = /\.(gif|png|webp)$/i.test(video.file.split("#")[0]);
    const media = element(isImage ? "img" : "video");
    if (!isImage) { media.controls = true; media.autoplay = true; media.loop = true; }
    media.onerror = () => { byId("player-note").textContent = "The browser cannot show this file: it was moved, or its format is not supported."; };
    media.src = video.file;
    byId("player-name").textContent = video.name;
    byId("player-note").textContent = "";
    byId("player-media").replaceChildren(media);
    byId("player").showModal();
  }
  byId("close").onclick = () => byId("player").close();
  byId("player").addEventListener("close", () => byId("player-media").replaceChildren());
  byId("player").addEventListener("click", (event) => { if (event.target === byId("player")) byId("player").close(); });

  // The picture of a video, playable where its file is known; nothing where there is neither.
  function thumb(video) {
    if (!video.picture && !video.file) return "";
    const box = element(video.file ? "button" : "div", "thumb" + (video.file ? " play" : ""));
    if (video.picture) {
      const image = element("img");
      image.loading = "lazy";
      image.alt = video.name;
      image.src = video.picture;
      box.append(image);
    } else {
      box.append(element("span", "", video.file ? "no picture" : ""));
    }
    if (video.file) {
      box.type = "button";
      box.setAttribute("aria-label", "Play " + video.name);
      box.onclick = () => play(video);
    }
    return box;
  }

  const score = (value) => (value === null ? "" : value.toFixed(3));

  function videoItem(index, place, value, isTrue) {
    const video = data.videos[index];
    const item = element("li", "item" + (isTrue ? " true" : ""));
    const line = element("span", "line");
    line.append(element("span", "", isTrue ? `${place} ✓` : String(place)), element("span", "", score(value)));
    const name = element("bdi", "name", video.name.split("/").pop());
    name.title = video.name;
    item.append(thumb(video), line, name);
    if (video.words !== undefined) {
      const some = video.words && video.words.length;
      const read = element("span", "words" + (some ? "" : " none"), some ? video.words.join(" ") : video.words ? "no words" : "no OCR");
      read.title = wordsOf(video);
      item.append(read);
    }
    return item;
  }

  // What was read in the picture: words, none, or null where the video has no usable OCR.
  function wordsOf(video) {
    const found = video.words === null ? "not known, its OCR is missing or damaged" : video.words.join(", ") || "none";
    return "words in the picture: " + found;
  }

  // For the video that a query is about; nothing for models that read no words.
  function wordLine(video) {
    if (video.words === undefined) return "";
    const read = element("p", "sub read", wordsOf(video));
    read.dir = "auto";
    return read;
  }

  function captionItem(index, place, value, isTrue) {
    const item = element("li", "item" + (isTrue ? " true" : ""));
    const text = element("div", "", data.captions[index].text);
    text.dir = "auto";
    item.append(element("span", "", isTrue ? `${place} ✓` : String(place)), element("span", "", score(value)), text);
    return item;
  }

  function entry(side, row) {
    const box = element("article", "query");
    const head = element("div", "head");
    const grade = row.rank <= 1 ? " hit" : row.rank <= 10 ? " near" : "";
    head.append(element("div", "badge" + grade, "rank " + row.rank));
    const words = element("div");
    const list = element("ol", "items" + (side === "v2t" ? " texts" : ""));
    if (side === "t2v") {
      const text = element("p", "text", data.captions[row.q].text);
      text.dir = "auto";
      const video = data.videos[row.true];
      words.append(text, element("p", "sub", ["true: " + video.name, ...video.tags].join(" · ")), wordLine(video));
      row.top.forEach((v, i) => list.append(videoItem(v, i + 1, row.scores[i], v === row.true)));
      if (!row.top.includes(row.true)) list.append(videoItem(row.true, row.rank, row.own, true));
    } else {
      const video = data.videos[row.q];
      head.append(thumb(video));
      words.append(element("p", "text", video.name), element("p", "sub", video.tags.join(" · ")), wordLine(video));
      row.top.forEach((c, i) => list.append(captionItem(c, i + 1, row.scores[i], data.captions[c].video === row.q)));
      if (!row.top.some((c) => data.captions[c].video === row.q)) list.append(captionItem(row.true, row.rank, row.own, true));
    }
    head.append(words);
    box.append(head, list);
    return box;
  }

  function selected() {
    const side = byId("direction").value;
    const wanted = byId("rank").value;
    const tag = byId("tag").value;
    const words = byId("search").value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const rows = data[side].filter((row) => {
      if (wanted === "hit" ? row.rank > 1 : wanted !== "all" && row.rank <= Number(wanted)) return false;
      const video = data.videos[side === "t2v" ? row.true : row.q];
      if (tag && !video.tags.includes(tag)) return false;
      if (!words.length) return true;
      const caption = data.captions[side === "t2v" ? row.q : row.true].text;
      const text = [video.name, caption, ...(video.words || [])].join(" ").toLocaleLowerCase();
      return words.every((word) => text.includes(word));
    });
    const order = byId("order").value;
    if (order !== "file") rows.sort((a, b) => (order === "best" ? a.rank - b.rank : b.rank - a.rank));
    return { side, rows };
  }

  function show() {
    const { side, rows } = selected();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    page = Math.min(page, pages - 1);
    byId("count").textContent = `${rows.length} of ${data[side].length} queries`;
    byId("list").replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map((row) => entry(side, row)));
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("back").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  }

  for (const id of ["direction", "rank", "tag", "order"]) byId(id).onchange = () => { page = 0; show(); };
  byId("search").oninput = () => { page = 0; show(); };
  const turn = (by) => { page += by; show(); byId("browser").scrollIntoView(); };
  byId("back").onclick = () => turn(-1);
  byId("next").onclick = () => turn(1);

  const root = document.documentElement;
  byId("theme").onclick = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  };

  // A link such as index.html#direction=v2t&rank=10 opens that view.
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = byId(key);
    if (field && ["direction", "rank", "tag", "order", "search"].includes(key)) field.value = value;
  }
  show();
})();
