package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// The most that a request may have of each kind. What is counted here costs more than
// its bytes: in decoding, in memory, in the child or at the provider.
const (
	maxMessages = 20_000
	maxTools    = 2_048
	maxParts    = 2_048 // of one message: parts of its content, or calls
	maxFields   = 1_024 // of one object, but for those of a schema
	maxDepth    = 256   // of a schema
)

// scanner reads a request's JSON. Values are parts of the body, which is not copied.
type scanner struct {
	left   func() error      // not nil once the client has left: then the rest is not read
	object *jsontext.Decoder // used again and again: it is large, and objects are many
}

func newScanner(left func() error) scanner { return scanner{left, new(jsontext.Decoder)} }

// members reads the fields of an object; the last of those with the same name counts.
// at is where the object stands, for errors.
func (s scanner) members(at string, value json.RawMessage, what string) (map[string]json.RawMessage, error) {
	if kindOf(value) != '{' {
		return nil, badRequest(at, "'%s' must be %s.", at, what)
	}
	fields := map[string]json.RawMessage{}
	d := decode(s.object, value)
	for d.more() {
		name, err := d.name()
		if err != nil {
			return nil, err
		}
		if fields[name], err = d.next(); err != nil {
			return nil, err
		}
		if len(fields) > maxFields {
			return nil, tooMany(at, maxFields, "fields")
		}
	}
	return fields, d.end()
}

// elements calls each with the elements of an array, of which there may be so many. at
// is where the array stands, for errors; plural is what is in it.
func (s scanner) elements(at string, value json.RawMessage, what string, most int, plural string, each func(i int, value json.RawMessage) error) error {
	if kindOf(value) != '[' {
		return badRequest(at, "'%s' must be %s.", at, what)
	}
	d := decode(new(jsontext.Decoder), value)
	for i := 0; d.more(); i++ {
		if i == most {
			return tooMany(at, most, plural)
		}
		if err := s.left(); err != nil {
			return err
		}
		element, err := d.next()
		if err == nil {
			err = each(i, element)
		}
		if err != nil {
			return err
		}
	}
	return d.end()
}

// listed is elements for an array of objects: each gets the fields of one, and where it
// stands.
func (s scanner) listed(at string, value json.RawMessage, most int, plural string, each func(i int, at string, fields map[string]json.RawMessage) error) error {
	const what = "an array of objects"
	return s.elements(at, value, what, most, plural, func(i int, value json.RawMessage) error {
		if kindOf(value) != '{' {
			return badRequest(at, "'%s' must be %s.", at, what)
		}
		at := fmt.Sprintf("%s[%d]", at, i)
		fields, err := s.members(at, value, what)
		if err != nil {
			return err
		}
		return each(i, at, fields)
	})
}

func tooMany(at string, most int, plural string) *Error {
	return badRequest(at, "'%s' must have at most %d %s.", at, most, plural)
}

// decoder reads the values of one object or array.
type decoder struct {
	data json.RawMessage
	*jsontext.Decoder
}

// decode makes a decoder read data.
func decode(d *jsontext.Decoder, data json.RawMessage) decoder {
	d.Reset(bytes.NewBuffer(data), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	d.ReadToken() // the bracket, which kindOf has seen
	return decoder{data, d}
}

// more reports whether there is another value, or an error that next returns.
func (d decoder) more() bool {
	kind := d.PeekKind()
	return kind != '}' && kind != ']'
}

func (d decoder) name() (string, error) {
	token, err := d.ReadToken()
	if err != nil {
		return "", err
	}
	return token.String(), nil
}

func (d decoder) next() (json.RawMessage, error) {
	value, err := d.ReadValue()
	if err != nil {
		return nil, err
	}
	end := int(d.InputOffset())
	return d.data[end-len(value) : end : end], nil
}

// end reads the closing bracket, behind which there must be nothing.
func (d decoder) end() error {
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("more than one value: %w", err)
	}
	return nil
}

// kindOf is the first character of a value that is not white space.
func kindOf(value json.RawMessage) byte {
	trimmed := bytes.TrimLeft(value, " \t\r\n")
	if len(trimmed) == 0 {
		return 0
	}
	return trimmed[0]
}

// depth is how deep the objects and arrays of a valid value are nested.
func depth(value json.RawMessage) (deepest int) {
	open := 0
	inString := false
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{', c == '[':
			open++
			deepest = max(deepest, open)
		case c == '}', c == ']':
			open--
		}
	}
	return deepest
}
