/** The playground at `/`: a page of static files, which asks the API as any client does. It knows no model. */
import type { Hono } from "hono";
import html from "./page/playground.html" with { type: "text" };
import css from "./page/playground.css" with { type: "text" };
import style from "./page/style.css" with { type: "text" };
import icon from "./page/icon.svg" with { type: "text" };
import clock from "./page/clock.js" with { type: "text" };
import completion from "./page/completion.js" with { type: "text" };
import conversation from "./page/conversation.js" with { type: "text" };
import follow from "./page/follow.js" with { type: "text" };
import playground from "./page/playground.js" with { type: "text" };
import request from "./page/request.js" with { type: "text" };
import settings from "./page/settings.js" with { type: "text" };
import theme from "./page/theme.js" with { type: "text" };
import tip from "./page/tip.js" with { type: "text" };
import tokens from "./page/tokens.js" with { type: "text" };
import { addFiles } from "./static.ts";

export function addPlayground(app: Pick<Hono, "get">): void {
  addFiles(app, "playground.html", {
    "playground.html": html,
    "playground.css": css,
    "style.css": style,
    "icon.svg": icon,
    "clock.js": clock,
    "completion.js": completion,
    "conversation.js": conversation,
    "follow.js": follow,
    "playground.js": playground,
    "request.js": request,
    "settings.js": settings,
    "theme.js": theme,
    "tip.js": tip,
    "tokens.js": tokens,
  });
}
