package standin

import "time"

// Style is that of the conditions of a version of KubeVirt.
type Style string

// The styles.
const (
	Style18 Style = "1.8"
	Style19 Style = "1.9"
)

// success is what both versions say.
const success = "Successfully completed VirtualMachineBackup"

// condition makes a condition. 1.8 has the text as the reason, and no message.
func (s Style) condition(kind, status, reason, text string) any {
	now := time.Now().UTC().Format(time.RFC3339)
	if s == Style18 {
		return map[string]any{"type": kind, "status": status, "reason": text, "lastProbeTime": nil, "lastTransitionTime": now}
	}
	return map[string]any{"type": kind, "status": status, "reason": reason, "message": text, "lastTransitionTime": now}
}

// attaching is while the volume for the files is not there yet. 1.9 has an empty status then.
func (s Style) attaching(text string) map[string]any {
	if s == Style19 {
		return map[string]any{}
	}
	return map[string]any{"conditions": []any{s.condition("Initializing", "True", "", text), s.condition("Progressing", "False", "", text)}}
}

// refused is while the VM cannot be backed up at all.
func (s Style) refused(text string) map[string]any {
	if s == Style18 {
		return s.attaching(text)
	}
	return map[string]any{"conditions": []any{s.condition("Progressing", "True", "Initializing", text)}}
}

func (s Style) running(kind, text string) map[string]any {
	conditions := []any{s.condition("Progressing", "True", "Initiated", text)}
	if s == Style18 {
		conditions = append(conditions, s.condition("Done", "False", "", text))
	}
	return map[string]any{"type": kind, "conditions": conditions}
}

func (s Style) succeeded() []any {
	return []any{s.condition("Progressing", "False", "Completed", success), s.condition(s.last("Complete"), "True", "Completed", success)}
}

func (s Style) failed(reason, text string) []any {
	text = "Backup has failed: " + text
	return []any{s.condition("Progressing", "False", reason, text), s.condition(s.last("Failed"), "True", reason, text)}
}

// last is the type of the last condition: 1.8 has one for all ends.
func (s Style) last(kind string) string {
	if s == Style18 {
		return "Done"
	}
	return kind
}
