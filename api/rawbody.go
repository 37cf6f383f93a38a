package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// rawObject is a JSON object of which some values are changed, and all else stays as it
// was written: spaces, escapes, long numbers, and the order.
type rawObject struct {
	open    []byte // up to the first member
	members []member
	tail    []byte // behind the last
}

type member struct {
	name  string
	head  []byte // all between the value before and this one: the comma, the name, the colon
	value json.RawMessage
}

// parseRaw cuts an object into its parts, which are parts of it.
func parseRaw(object []byte) (o rawObject, err error) {
	at := bytes.IndexByte(object, '{') + 1
	o.open = object[:at]
	d := decode(new(jsontext.Decoder), object)
	for d.more() {
		name, err := d.name()
		if err != nil {
			return o, err
		}
		value, err := d.next()
		if err != nil {
			return o, err
		}
		end := int(d.InputOffset())
		o.members = append(o.members, member{name, object[at : end-len(value)], value})
		at = end
	}
	o.tail = object[at:]
	return o, d.end()
}

// get is the value of a member; null is as if it were not there.
func (o rawObject) get(name string) json.RawMessage {
	for _, m := range o.members {
		if m.name == name && !isNull(m.value) {
			return m.value
		}
	}
	return nil
}

// role is that of a message; "" where it has none.
func (o rawObject) role() (role string) {
	_ = unmarshal(o.get("role"), &role)
	return role
}

// types are the values of its members called type: of two, a server may take either.
func (o rawObject) types() (types []string) {
	for _, m := range o.members {
		if strings.EqualFold(m.name, "type") && !isNull(m.value) {
			var kind string
			_ = unmarshal(m.value, &kind) // another value is no type
			types = append(types, kind)
		}
	}
	return types
}

// with is the object with other values. A member that is not there is put in front, and
// one whose value is nil is left out.
func (o rawObject) with(values map[string]json.RawMessage) []byte {
	out := bytes.Clone(o.open)
	bare := len(out)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		there := slices.ContainsFunc(o.members, func(m member) bool { return m.name == name })
		if value := values[name]; value != nil && !there {
			if len(out) > bare {
				out = append(out, ',')
			}
			out = fmt.Appendf(out, "%s:%s", marshal(name), value)
		}
	}
	for i, m := range o.members {
		value, changed := values[m.name]
		if !changed {
			value = m.value
		}
		head, first := m.head, len(out) == bare
		switch {
		case value == nil:
			continue
		case first && i > 0:
			head = bytes.Replace(head, []byte(","), nil, 1) // of those left out before it
		case !first && i == 0:
			out = append(out, ',')
		}
		out = append(append(out, head...), value...)
	}
	return append(out, o.tail...)
}

// elements are the values in an array. Another value has none.
func elements(array json.RawMessage) iter.Seq2[int, json.RawMessage] {
	return func(yield func(int, json.RawMessage) bool) {
		if kindOf(array) != '[' {
			return
		}
		d := decode(new(jsontext.Decoder), array)
		for i := 0; d.more(); i++ {
			if element, err := d.next(); err != nil || !yield(i, element) {
				return
			}
		}
	}
}

// objects are the objects in an array, with their places in it.
func objects(array json.RawMessage) iter.Seq2[int, rawObject] {
	return func(yield func(int, rawObject) bool) {
		for i, element := range elements(array) {
			if kindOf(element) != '{' {
				continue
			}
			if o, err := parseRaw(element); err != nil || !yield(i, o) {
				return
			}
		}
	}
}
