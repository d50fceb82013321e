/* Light or dark: the system's choice, or the one made here and kept in this browser. It runs before the page is drawn and
   knows only the button `#theme`. */
{
  const key = "wgpt.theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const system = () => (dark.matches ? "dark" : "light");
  const shown = () => document.documentElement.dataset.theme ?? system();
  const kept = () => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // storage may be forbidden
    }
  };
  const keep = (theme) => {
    try {
      if (theme === system()) localStorage.removeItem(key);
      else localStorage.setItem(key, theme);
    } catch {
      // then it holds until the page is left
    }
  };
  const show = (theme) => {
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  };
  const describe = (button) => {
    const other = shown() === "dark" ? "light" : "dark";
    button.textContent = other === "dark" ? "Dark" : "Light";
    button.ariaLabel = `${button.textContent} colors`;
  };

  show(kept());
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    describe(button);
    dark.addEventListener("change", () => describe(button));
    button.addEventListener("click", () => {
      const theme = shown() === "dark" ? "light" : "dark";
      show(theme);
      keep(theme);
      describe(button);
    });
  });
}
