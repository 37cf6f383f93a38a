package api

import (
	"bytes"
	"image"
	_ "image/gif" // the formats that Codex reads
	_ "image/jpeg"
	_ "image/png"

	_ "golang.org/x/image/webp"
)

// maxPixels bounds an image for a child that calls the provider itself: Codex decodes it,
// which takes 6 bytes for each pixel, and a megabyte may hold 256 million. Behind the
// relay a child sees no image.
const maxPixels = 40_000_000

// large reports whether an image says that it has more pixels than a child may decode. One
// whose header cannot be read is not decoded by Codex either.
func large(data []byte) bool {
	config, _, err := image.DecodeConfig(bytes.NewReader(data))
	return err == nil && config.Width > maxPixels/max(config.Height, 1)
}
