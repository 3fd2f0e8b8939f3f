// Draws the pictures of a page, which contains them as text in the language of Mermaid.
if (document.querySelector("pre.mermaid")) {
  const script = document.createElement("script");
  script.src = new URL("mermaid.tiny.js", document.currentScript.src);
  script.onload = () => {
    const isDark = ["navy", "coal", "ayu"].some((name) => document.documentElement.classList.contains(name));
    mermaid.initialize({ startOnLoad: false, securityLevel: "strict", theme: isDark ? "dark" : "neutral" });
    mermaid.run();
  };
  document.head.append(script);
}
