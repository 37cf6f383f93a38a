// Package runbooks holds the pages for whoever is on call. The program prints them and the
// admin listener serves them, so that they are at hand where the daemon is, in the words of
// its version.
package runbooks

import (
	"bytes"
	"embed"
	"html/template"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
)

// Pages has each page as NAME.md, and their index as README.md.
//
//go:embed *.md
var Pages embed.FS

var markdown = goldmark.New(goldmark.WithExtensions(extension.Table))

// Text is a page in Markdown, by its name with .md.
func Text(name string) ([]byte, error) { return Pages.ReadFile(name) }

// HTML is a page for a browser. HTML that a page contains is left out.
func HTML(page []byte) (template.HTML, error) {
	var b bytes.Buffer
	err := markdown.Convert(page, &b)
	return template.HTML(b.String()), err
}
