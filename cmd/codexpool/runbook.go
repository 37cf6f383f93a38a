package main

import (
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strings"

	"codexpool/runbooks"
)

// printPage prints the page that has this name, to which this alert leads, or which
// explains this error code. Without a name it prints where to begin.
func printPage(name string, rendered bool, stdout, stderr io.Writer) int {
	text := findPage(name)
	if text == "" {
		fmt.Fprintf(stderr, "codexpool: there is no page, alert or error code %s. The pages are:\n\n%s\n", name, wrapped(strings.Join(pageNames(), " "), "  "))
		return exitBadUsage
	}
	if rendered {
		text = render(text)
	}
	io.WriteString(stdout, text)
	return exitOK
}

// findPage is the text of a page, or for an error code its row of the table of codes.
func findPage(name string) string {
	if name == "" {
		name = "README"
	}
	name = strings.TrimSuffix(name, ".md")
	alert := regexp.MustCompile(`(?m)^Alerts: .*\b` + regexp.QuoteMeta(name) + `\b`)
	for _, page := range pageNames() {
		if text := readPage(page); strings.EqualFold(page, name) || alert.MatchString(text) {
			return text
		}
	}
	head, row, _ := runbooks.Code(name)
	if row == "" {
		return ""
	}
	return head + row
}

func pageNames() (names []string) {
	files, _ := fs.Glob(runbooks.Pages, "*.md") // its only error is a bad pattern
	for _, file := range files {
		names = append(names, strings.TrimSuffix(file, ".md"))
	}
	return names
}

func readPage(name string) string {
	text, err := runbooks.Pages.ReadFile(name + ".md")
	if err != nil {
		panic("BUG: " + err.Error()) // the names are from pageNames, or of pages that a test reads
	}
	return string(text)
}

var (
	mark  = regexp.MustCompile(`^ *(?:\d+\. |- |> )`) // begins an item
	link  = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	bold  = regexp.MustCompile(`(?s)\*\*(.+?)\*\*`)
	code  = regexp.MustCompile("(?s)`([^`]+)`")
	ruled = regexp.MustCompile(`^\|[-| ]+\|$`)
)

// render makes a page of Markdown fit a terminal: paragraphs are wrapped, what is to be
// typed or printed is indented, and a row of a table is a paragraph. It knows as much of
// Markdown as the pages have.
func render(page string) string {
	var r renderer
	for line := range strings.Lines(page) {
		r.line(strings.TrimRight(line, "\n"))
	}
	r.flush()
	return r.out.String()
}

// renderer is what render knows between two lines.
type renderer struct {
	out       strings.Builder
	paragraph string   // that has begun
	header    []string // of the table that has begun
	verbatim  bool
}

func (r *renderer) line(line string) {
	fence := strings.HasPrefix(strings.TrimSpace(line), "```")
	switch {
	case fence:
		r.flush()
		r.verbatim = !r.verbatim
	case r.verbatim:
		r.out.WriteString("    " + line + "\n")
	case strings.HasPrefix(line, "|"):
		r.row(line)
	case strings.HasPrefix(line, "<!--"): // a mark for whatever writes a part of the page
	case line == "":
		r.flush()
		r.header = nil
		r.out.WriteString("\n")
	case strings.HasPrefix(line, "#"):
		r.out.WriteString("\x1b[1;4m" + strings.TrimLeft(line, "# ") + "\x1b[0m\n")
	case mark.MatchString(line):
		r.flush()
		r.paragraph = line
	default:
		if r.paragraph != "" {
			line = " " + strings.TrimSpace(line)
		}
		r.paragraph += line
	}
}

// flush writes the paragraph that has begun. The lines of an item are as far to the right
// as its text.
func (r *renderer) flush() {
	if r.paragraph == "" {
		return
	}
	first := mark.FindString(r.paragraph)
	if first == "" {
		first = r.paragraph[:len(r.paragraph)-len(strings.TrimLeft(r.paragraph, " "))]
	}
	text := link.ReplaceAllString(strings.TrimPrefix(r.paragraph, first), "$1")
	text = first + strings.TrimPrefix(wrapped(text, strings.Repeat(" ", len(first))), strings.Repeat(" ", len(first)))
	text = code.ReplaceAllString(bold.ReplaceAllString(text, "\x1b[1m$1\x1b[22m"), "\x1b[36m$1\x1b[39m")
	r.out.WriteString(text + "\n")
	r.paragraph = ""
}

// row writes a row of a table: its first cell, and under it the others with their titles.
func (r *renderer) row(line string) {
	r.flush()
	if ruled.MatchString(line) {
		return
	}
	cells := strings.Split(strings.Trim(strings.ReplaceAll(line, `\|`, "\x00"), "| "), "|")
	for i := range cells {
		cells[i] = strings.TrimSpace(strings.ReplaceAll(cells[i], "\x00", "|"))
	}
	if r.header == nil {
		r.header = cells
		return
	}
	r.paragraph = "- " + cells[0]
	r.flush()
	for i, cell := range cells[1:] {
		if i+1 < len(r.header) && cell != "" {
			r.paragraph = "  " + r.header[i+1] + ": " + cell
			r.flush()
		}
	}
}
