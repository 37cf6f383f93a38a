package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"codexpool/configs"
)

// columns is the width of a terminal that nobody has widened.
const columns = 80

// printConfig prints every setting with its value in effect, for people or as JSON for
// programs. It prints nothing where the settings could not be read.
func printConfig(w io.Writer, settings []configs.Setting, asJSON bool) {
	if len(settings) == 0 {
		return
	}
	if asJSON {
		out := json.NewEncoder(w)
		out.SetEscapeHTML(false)
		out.SetIndent("", "  ")
		out.Encode(settings)
		return
	}
	for _, s := range settings {
		fmt.Fprintf(w, "%s=%s\n%s\n", s.Name, s.Value, wrapped("("+s.Source+") "+s.Meaning, "    "))
	}
}

// wrapped breaks a text into lines that fit the columns.
func wrapped(text, indent string) string {
	var lines []string
	line := indent
	for _, word := range strings.Fields(text) {
		if line != indent && len(line)+len(word) >= columns {
			lines, line = append(lines, line), indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	return strings.Join(append(lines, line), "\n")
}
