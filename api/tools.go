package api

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
)

// tool is a function that the model may call.
type tool struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Parameters  json.RawMessage `json:"parameters"`
	Strict      bool            `json:"strict"` // always sent: the Responses API treats its absence as true
}

// toolChoice is which of the tools the model may or must call.
type toolChoice struct {
	Mode    string   // auto, none or required; "" = the provider's default
	Name    string   // of the one function that must be called; "" = none in particular
	Allowed []string // names of the functions that Mode is about; nil = all

	Field string // where it was given, for errors
}

// binds reports whether the model must call a function, or may call only some.
func (c toolChoice) binds() bool { return c.Mode == "required" || c.Name != "" || c.Allowed != nil }

// names are the functions that the choice names.
func (c toolChoice) names() []string {
	if c.Name != "" {
		return []string{c.Name}
	}
	return c.Allowed
}

var toolName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,128}$`)

func readTools(req *chatRequest, name string, value json.RawMessage) error {
	return req.listed(name, value, maxTools, "tools", func(_ int, at string, fields map[string]json.RawMessage) error {
		if req.LegacyCalls {
			return badRequest("functions", "Use either 'tools' or the deprecated 'functions', not both.")
		}
		var kind string
		if err := into(&kind, at+".type", fields["type"], "a string"); err != nil {
			return err
		}
		if kind != "function" {
			return unsupported(at + ".type")
		}
		if err := req.addTool(at+".function", fields["function"]); err != nil {
			return err
		}
		req.ignoreRest("tools.", fields, "type", "function")
		return nil
	})
}

// readFunctions reads the legacy form of tools.
func readFunctions(req *chatRequest, name string, value json.RawMessage) error {
	return req.elements(name, value, "an array of objects", maxTools, "functions", func(i int, value json.RawMessage) error {
		req.LegacyCalls = true
		return req.addTool(fmt.Sprintf("%s[%d]", name, i), value)
	})
}

// addTool checks a function's declaration and keeps it. at is where it stands, for
// errors.
func (req *chatRequest) addTool(at string, value json.RawMessage) error {
	fields, err := req.members(at, value, "an object")
	if err != nil {
		return err
	}
	t := tool{Parameters: json.RawMessage(`{"type":"object","properties":{}}`)}
	if err := into(&t.Name, at+".name", fields["name"], "a string"); err != nil {
		return err
	}
	if !toolName.MatchString(t.Name) {
		return badRequest(at+".name", "The tool name %.200q must be 1 to 128 letters, digits, '_' or '-'.", t.Name)
	}
	if req.toolNames[t.Name] {
		return badRequest(at+".name", "There are two tools with the name %q.", t.Name)
	}
	req.toolNames[t.Name] = true
	for key, v := range fields {
		if isNull(v) {
			continue
		}
		var err error
		switch key {
		case "name":
		case "description":
			err = into(&t.Description, at+"."+key, v, "a string")
		case "strict":
			err = into(&t.Strict, at+"."+key, v, "a boolean")
		case "parameters":
			t.Parameters = v
			err = checkParameters(at+"."+key, t)
		}
		if err != nil {
			return err
		}
	}
	req.ignoreRest("tools.function.", fields, "name", "description", "strict", "parameters")
	req.Tools = append(req.Tools, t)
	return nil
}

// checkParameters checks the schema of a tool's parameters; at is where it stands.
func checkParameters(at string, t tool) error {
	if err := checkDepth(at, t.Parameters); err != nil {
		return err
	}
	var schema struct{ Type any }
	if json.Unmarshal(t.Parameters, &schema) != nil || (schema.Type != nil && schema.Type != "object") {
		return badRequest(at, "The parameters of the tool %q must be a JSON schema of type object.", t.Name)
	}
	return nil
}

// checkDepth checks how deep a schema is nested; at is where it stands.
func checkDepth(at string, schema json.RawMessage) error {
	if depth(schema) > maxDepth {
		return badRequest(at, "'%s' must not be nested deeper than %d levels.", at, maxDepth)
	}
	return nil
}

// readToolChoice reads tool_choice, and the legacy function_call.
func readToolChoice(req *chatRequest, name string, value json.RawMessage) error {
	req.ToolChoice = toolChoice{Field: name} // the newer field wins, and wins whole
	var mode string
	if json.Unmarshal(value, &mode) == nil {
		modes := []string{"none", "auto"}
		if name == "tool_choice" {
			modes = append(modes, "required")
		}
		if !slices.Contains(modes, mode) {
			return badRequest(name, "'%s' must be one of %v, or name a function.", name, modes)
		}
		req.ToolChoice.Mode = mode
		return nil
	}
	fields, err := req.members(name, value, "a string or an object")
	if err != nil {
		return err
	}
	if name != "tool_choice" {
		req.ignoreRest(name+".", fields, "name")
		return short(&req.ToolChoice.Name, name+".name", fields["name"])
	}
	var kind string
	if err := into(&kind, name+".type", fields["type"], "a string"); err != nil {
		return err
	}
	req.ignoreRest(name+".", fields, "type", kind)
	switch kind {
	case "function":
		return req.readFunctionName(&req.ToolChoice.Name, name, fields)
	case "allowed_tools":
		return req.readAllowedTools(name+".allowed_tools", fields["allowed_tools"])
	}
	return unsupported(name + ".type")
}

// readFunctionName reads the name of a function, which stands below function.
func (req *chatRequest) readFunctionName(to *string, at string, fields map[string]json.RawMessage) error {
	at += ".function"
	function, err := req.members(at, fields["function"], "an object")
	if err != nil {
		return err
	}
	req.ignoreRest(at+".", function, "name")
	return short(to, at+".name", function["name"])
}

// readAllowedTools reads a choice among some of the tools.
func (req *chatRequest) readAllowedTools(at string, value json.RawMessage) error {
	fields, err := req.members(at, value, "an object")
	if err != nil {
		return err
	}
	choice := &req.ToolChoice
	if err := into(&choice.Mode, at+".mode", fields["mode"], "a string"); err != nil {
		return err
	}
	if choice.Mode != "auto" && choice.Mode != "required" {
		return badRequest(at+".mode", "'%s.mode' must be auto or required.", at)
	}
	req.ignoreRest(at+".", fields, "mode", "tools")
	choice.Allowed = []string{}
	return req.listed(at+".tools", fields["tools"], maxTools, "tools", func(_ int, at string, fields map[string]json.RawMessage) error {
		if string(fields["type"]) != `"function"` {
			return unsupported(at + ".type")
		}
		var name string
		if err := req.readFunctionName(&name, at, fields); err != nil {
			return err
		}
		choice.Allowed = append(choice.Allowed, name)
		req.ignoreRest(at+".", fields, "type", "function")
		return nil
	})
}

// checkTools checks the fields for tools against each other.
func (req *chatRequest) checkTools() error {
	choice := req.ToolChoice
	if choice.binds() && len(req.Tools) == 0 {
		return badRequest(choice.Field, "'%s' needs tools to choose from.", choice.Field)
	}
	for _, name := range choice.names() {
		if !req.toolNames[name] {
			return badRequest(choice.Field, "'%s' names %.100q, which is not one of the tools.", choice.Field, name)
		}
	}
	return nil
}

// readResponseFormat keeps the format in the form of the Responses API.
func readResponseFormat(req *chatRequest, name string, value json.RawMessage) error {
	format, err := req.members(name, value, "an object")
	if err != nil {
		return err
	}
	var kind string
	if err := into(&kind, name+".type", format["type"], "a string"); err != nil {
		return err
	}
	req.ignoreRest(name+".", format, "type", kind)
	switch kind {
	case "text":
		return nil
	case "json_object":
		req.Format = map[string]any{"type": kind}
		return nil
	case "json_schema":
		return req.readSchema(name+".json_schema", format["json_schema"])
	}
	return badRequest(name+".type", "'%s.type' must be one of text, json_object, json_schema.", name)
}

func (req *chatRequest) readSchema(at string, value json.RawMessage) error {
	fields, err := req.members(at, value, "an object")
	if err != nil {
		return err
	}
	var name string
	if err := short(&name, at+".name", fields["name"]); err != nil {
		return err
	}
	if isNull(fields["schema"]) {
		return badRequest(at+".schema", "'%s.schema' is missing.", at)
	}
	// Absent means true to the Responses API, and false here.
	req.Format = map[string]any{"type": "json_schema", "strict": false}
	for key, v := range fields {
		if isNull(v) {
			continue
		}
		var err error
		switch key {
		case "name", "description":
			err = into(new(string), at+"."+key, v, "a string")
		case "schema":
			if err = checkDepth(at+"."+key, v); err == nil && kindOf(v) != '{' {
				err = badRequest(at+"."+key, "'%s.%s' must be an object.", at, key)
			}
		case "strict":
			err = into(new(bool), at+"."+key, v, "a boolean")
		default:
			continue
		}
		if err != nil {
			return err
		}
		req.Format[key] = v
	}
	req.ignoreRest(at+".", fields, "name", "description", "schema", "strict")
	return nil
}
