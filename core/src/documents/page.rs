//! Reads the Markdown of a page: its sections, lists, tables and code blocks. It knows only the forms that our pages have.

/// A page, or a part of one.
#[derive(Clone)]
pub(crate) struct Page {
    lines: Vec<String>,
}

impl Page {
    /// The page `docs/reference/<name>.md`.
    pub(crate) fn read(name: &str) -> Self {
        let file = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/{}.md"), name);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        Self { lines: text.lines().map(str::to_owned).collect() }
    }

    /// The sections whose headings begin with `level`, such as `## `: the rest of each heading, and the lines up to the next
    /// heading of this level or a higher one.
    pub(crate) fn sections<'p>(&'p self, level: &str) -> impl Iterator<Item = (&'p str, Self)> {
        let depth = level.trim_end().len();
        let mut sections: Vec<(&str, Self)> = Vec::new();
        let (mut is_open, mut is_code) = (false, false);
        for line in &self.lines {
            is_code ^= line.starts_with("```");
            let hashes = line.bytes().take_while(|byte| *byte == b'#').count();
            if !is_code && (1..=depth).contains(&hashes) {
                is_open = hashes == depth;
                sections.extend(is_open.then(|| (line[level.len()..].trim(), Self { lines: Vec::new() })));
            } else if let Some((_, section)) = sections.last_mut().filter(|_| is_open) {
                section.lines.push(line.clone());
            }
        }
        sections.into_iter()
    }

    /// The section with this heading, such as `## Scopes`.
    pub(crate) fn section(&self, heading: &str) -> Self {
        let (level, wanted) = heading.split_at(heading.find(' ').unwrap() + 1);
        self.sections(level).find(|(found, _)| *found == wanted).unwrap_or_else(|| panic!("there is no {heading:?}")).1
    }

    /// The paragraphs, each as one line.
    pub(crate) fn paragraphs(&self) -> Vec<String> {
        let paragraphs = self.lines.split(|line| line.is_empty()).filter(|lines| !lines.is_empty());
        paragraphs.map(|lines| lines.join(" ")).collect()
    }

    /// The items of the lists, each as one line and without its dash.
    pub(crate) fn items(&self) -> Vec<String> {
        let mut items: Vec<String> = Vec::new();
        let mut is_item = false;
        for line in &self.lines {
            if let Some(item) = line.strip_prefix("- ") {
                items.push(item.to_owned());
                is_item = true;
            } else if let Some(item) = items.last_mut().filter(|_| is_item && line.starts_with("  ")) {
                item.push_str(&line[1..]);
            } else {
                is_item = false;
            }
        }
        items
    }

    /// The rows of the first table, without its heading.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let lines = self.lines.iter().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        let cells = |line: &String| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        lines.skip(2).map(cells).collect()
    }

    /// The code blocks with this info string.
    pub(crate) fn blocks(&self, info: &str) -> Vec<String> {
        let text = self.lines.join("\n");
        let start = format!("```{info}\n");
        let blocks = text.split(&start).skip(1);
        blocks.map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned()).collect()
    }
}

/// The code spans in a line.
pub(crate) fn codes(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}
