package main

import (
	"slices"
	"strings"
	"testing"

	"instantenv/init/internal/boot"
	"instantenv/init/internal/config"
	"instantenv/init/internal/mount"
)

func TestEarlyWordsAreThoseOfALaterStart(t *testing.T) {
	var arguments []string
	for _, word := range earlyWords[7:12] { // as early_*.s count them
		text, whole := strings.CutSuffix(word, "\x00")
		if !whole || strings.Contains(text, "\x00") {
			t.Errorf("%q is not a word of C", word)
		}
		arguments = append(arguments, text)
	}
	for i, word := range []string{mount.Table[0].Kind, mount.Table[0].Target, mount.Table[2].Kind, mount.Table[2].Target, mount.Table[2].Options} {
		if earlyWords[i] != word+"\x00" {
			t.Errorf("mounts %q, not %q", earlyWords[i], word)
		}
	}
	if want := boot.ServerArguments(config.DefaultSSHD); !slices.Equal(arguments, want) {
		t.Errorf("got %q, want %q", arguments, want)
	}
	if len(arguments) >= len(earlyArguments) {
		t.Error("no room for the end of the arguments")
	}
}
