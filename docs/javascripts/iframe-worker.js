// Lets the search run when the site is opened from a folder: browsers start no worker for file:// addresses. This one
// runs the worker's scripts in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const source = new URL(url, location)
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const scope = frame.contentWindow
      const load = (address) => new Promise((resolve, reject) => {
        const script = scope.document.createElement("script")
        script.src = new URL(address, source)
        script.onload = resolve
        script.onerror = reject
        scope.document.body.appendChild(script)
      })
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", {data}))
      scope.importScripts = (...addresses) => addresses.reduce((before, one) => before.then(() => load(one)), Promise.resolve())
      this.scope = scope
      this.ready = load(source)
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new this.scope.MessageEvent("message", {data})))
    }

    terminate() {}
  }
}
