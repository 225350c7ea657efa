/** A plugin of TissUUmaps: what is known of the tile under the pointer, and colours that span the training tissue. */
tcgn_tiles = {
  name: "Tiles",
  init: async () => {
    const about = await (await fetch("tiles.json")).json();
    const viewer = tmapp["ISS_viewer"], half = about.side / 2;
    const tip = document.createElement("div");
    tip.id = "tcgn_tip";
    tip.className = "viewer-layer p-1";
    Object.assign(tip.style, { position: "absolute", pointerEvents: "none", maxWidth: "20rem", zIndex: 100 });
    tip.hidden = true;
    viewer.container.append(tip);
    // above the bar of the scale, which it would cover
    document.getElementById("colorbar_canvas").style.transform = "translateY(-2.5rem)";
    const column = () => Number(dataUtils.data[about.uid]?.["_cb_col"]?.split(";")[1] ?? NaN);
    document.addEventListener("glUtilsDraw", () => {
      const limits = about.limits[column()];
      if (!limits) return;
      glUtils._markerScalarRange[about.uid] = limits;
      glUtils.draw();
      glUtils._updateColorbarCanvas();
    });
    const tile = at => {
      let best = -1, least = Infinity;
      for (let i = 0; i < about.x.length; i++) {
        const away = Math.max(Math.abs(about.x[i] - at.x), Math.abs(about.y[i] - at.y));
        if (away <= half && away < least) [best, least] = [i, away];
      }
      return best;
    };
    viewer.container.addEventListener("pointermove", event => {
      const image = viewer.world.getItemAt(0), box = viewer.container.getBoundingClientRect(), shown = column();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      const i = image ? tile(image.viewerElementToImageCoordinates(new OpenSeadragon.Point(x, y))) : -1;
      const value = dataUtils.data[about.uid]?.["_processeddata"]?.[`/X;${shown}`]?.[i];
      tip.hidden = i < 0 || value === undefined;
      if (tip.hidden) return;
      const number = known => typeof known === "number" ? known.toFixed(2) : known;
      const lines = [
        `tile ${about.names[i]}`,
        `${about.columns[shown]}: ${number(value)} ${about.units[shown]}`,
        about.said[shown],
        ...Object.entries(about.facts).filter(([, of]) => of[i] !== null).map(([name, of]) => `${name}: ${number(of[i])}`),
      ];
      tip.replaceChildren(...lines.filter(line => line).map(line => {
        const text = document.createElement("div");
        text.textContent = line;
        return text;
      }));
      const west = x < box.width / 2, north = y < box.height / 2;
      Object.assign(tip.style, {
        left: west ? `${x + 16}px` : "auto", right: west ? "auto" : `${box.width - x + 16}px`,
        top: north ? `${y + 16}px` : "auto", bottom: north ? "auto" : `${box.height - y + 16}px`,
      });
    });
    viewer.container.addEventListener("pointerleave", () => { tip.hidden = true; });
    document.dispatchEvent(new Event("glUtilsDraw"));
  },
};
