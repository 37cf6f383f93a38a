// Package runbooks holds the pages for whoever is on call. The program prints them and the
// admin listener serves them, so that they are at hand where the daemon is, in the words of
// its version.
package runbooks

import (
	"bytes"
	"embed"
	"html/template"
	"regexp"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
)

// Pages has each page as NAME.md, and their index as README.md.
//
//go:embed *.md
var Pages embed.FS

//go:embed Errors.md
var errors string

var markdown = goldmark.New(goldmark.WithExtensions(extension.Table))

// Text is a page in Markdown, by its name with .md.
func Text(name string) ([]byte, error) { return Pages.ReadFile(name) }

// HTML is a page for a browser. HTML that a page contains is left out.
func HTML(page []byte) (template.HTML, error) {
	var b bytes.Buffer
	err := markdown.Convert(page, &b)
	return template.HTML(b.String()), err
}

// Code returns what Errors.md has of an error code: the head of its table, the code's row,
// and the page that the row names, such as Drain.md. A code that it does not have has no
// row, and one that needs nobody on call has no page.
func Code(code string) (head, row, page string) {
	for line := range strings.Lines(errors) {
		switch {
		case strings.HasPrefix(line, "| `"+code+"` |"):
			row = line
			if name := lastLink.FindStringSubmatch(line); name != nil {
				page = name[1]
			}
		case strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "| `"):
			head += line
		}
	}
	return head, row, page
}

var lastLink = regexp.MustCompile(`\((\w+\.md)\) \|\n$`)
